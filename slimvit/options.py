"""*How* a run is carried out: where, how fast, what it may overwrite. What it computes is recipe.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slimvit.errors import SlimvitError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Options:
    """Nothing here changes the result of a run, only how it comes about."""

    out: Path | None = None
    """The run folder to write; None writes nothing."""
    device: str = "auto"
    workers: int = 0
    """Processes that load images; 0 loads them in the main process."""
    force: bool = False
    """Replace an earlier run folder."""
    cache: bool = True
    """Keep the calibration images' token streams in memory during the refit."""

    def torch_device(self) -> torch.device:
        """The device to run on; `auto` takes CUDA, then MPS, then the CPU."""
        import torch

        there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if self.device == "auto":
            return torch.device(next(d for d in ("cuda", "mps", "cpu") if there[d]))
        if not there.get(self.device.split(":")[0], False):
            have = ", ".join(d for d, ok in there.items() if ok)
            raise SlimvitError(f"device {self.device}: not on this machine; it has {have}")
        return torch.device(self.device)
