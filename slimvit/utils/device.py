"""The device that computes, and the memory that is free on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

from slimvit.utils.errors import SlimvitError

SHARE = 0.5
"""Largest share of the free memory that a step may use."""

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")
"""Limit, usage and reclaimable cache of a control group, by version of control groups."""


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device of this name; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        SlimvitError: This machine does not have the device.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(d for d in ("cuda", "mps", "cpu") if available[d]))
    if not available.get(name.split(":")[0], False):
        have = ", ".join(d for d, present in available.items() if present)
        raise SlimvitError(f"device {name}: not on this machine; it has {have}")
    return torch.device(name)


def free_bytes(device: torch.device) -> int | None:
    """Return the free bytes of a GPU, or `free_memory` for the CPU; None where the system does not report them."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory() if device.type == "cpu" else None


def free_memory() -> int | None:
    """Return the bytes that this process may still allocate; None where the system does not report them.

    That is the least of the machine's free memory and what the limits of its control groups leave. A container or batch
    job sees the memory of the whole machine, and is killed beyond its own limit.
    """
    machine = proc_bytes(PROC / "meminfo", "MemAvailable")
    return min([*([] if machine is None else [machine]), *_free_in_groups()], default=None)


def proc_bytes(file: Path, name: str) -> int | None:
    """Read the line `name: 123 kB` of a file in /proc, in bytes; None where the file or the line is missing."""
    match = re.search(rf"{name}:\s+(\d+) kB", _read(file))
    return int(match[1]) * 1024 if match is not None else None


def _free_in_groups() -> Iterator[int]:
    """Free bytes of each control group of this process, outer groups included."""
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, (limit, usage, inactive) = (GROUPS / "memory", V1) if controllers else (GROUPS, V2)
        inner = PurePosixPath(path.lstrip("/"))
        for folder in (root / inner, *(root / outer for outer in inner.parents)):
            most, used = _read(folder / limit).strip(), _read(folder / usage).strip()
            if most.isdecimal() and used.isdecimal():  # `max` means no limit
                cache = re.search(rf"^{inactive} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
                yield max(0, int(most) - int(used) + (0 if cache is None else int(cache[1])))


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
