"""Which device computes: a word such as `auto` or `cuda:1` resolved to a device that is there."""

from __future__ import annotations

import torch

from slimvit.utils.errors import SlimvitError


def resolve_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` takes CUDA, then MPS, then the CPU.

    Raises `SlimvitError` for a device this machine does not have.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(d for d in ("cuda", "mps", "cpu") if available[d]))
    if not available.get(name.split(":")[0], False):
        have = ", ".join(d for d, there in available.items() if there)
        raise SlimvitError(f"device {name}: not on this machine; it has {have}")
    return torch.device(name)
