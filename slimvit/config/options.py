"""Options: how a run is carried out, such as its device. What a run computes is its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slimvit.utils.output import link_target


@dataclass(frozen=True)
class Options:
    """How a run is carried out. No option changes the result, apart from the rounding of bf16."""

    out: Path | None = None
    """The run folder to write; None writes nothing."""
    device: str = "auto"
    workers: int = 0
    """Processes that load images; 0 loads them in the main process."""
    force: bool = False
    """Replace an earlier run folder."""
    precision: str = "fp32"
    """Precision of the matrix products in training: `fp32`, or `bf16` with weights, sums and evaluation in fp32."""
    compile: bool = False
    """Compile the network for training with torch.compile."""
    resume: bool = False
    """Resume the interrupted training in `out`, if there is one."""
    save_minutes: float = 10.0
    """Minutes between two saves of the training state within an epoch; every epoch ends with a save."""
    cache: Path | None = None
    """Folder of results that runs share: a run reads those that it finds and adds the others."""
    log_with: str | None = None
    """Tracker that gets the rows of history.csv as well: `tensorboard` or `wandb`."""

    def __post_init__(self) -> None:
        """Take the folder that a link points to; raises `StoreError` for another link."""
        if self.out is not None:
            object.__setattr__(self, "out", link_target(self.out))

    def flags(self) -> list[str]:
        """Return the options as flags of the command line, without those that name folders."""
        flags = [] if self.device == "auto" else ["--device", self.device]
        flags += ["--workers", str(self.workers)] if self.workers else []
        flags += [] if self.precision == "fp32" else ["--precision", self.precision]
        flags += ["--compile"] if self.compile else []
        flags += [] if self.save_minutes == 10 else ["--save-minutes", f"{self.save_minutes:g}"]
        return flags + (["--log-with", self.log_with] if self.log_with else [])
