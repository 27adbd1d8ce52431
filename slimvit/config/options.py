"""*How* a run is carried out: where, how fast, what it may overwrite. What it computes is recipe.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """Nothing here changes what a run computes, only how it comes about (bf16 rounds more coarsely while it trains)."""

    out: Path | None = None
    """The run folder to write; None writes nothing."""
    device: str = "auto"
    workers: int = 0
    """Processes that load images; 0 loads them in the main process."""
    force: bool = False
    """Replace an earlier run folder."""
    precision: str = "fp32"
    """What training multiplies in: `fp32`, or `bf16` with weights, sums and evaluation in fp32."""
    compile: bool = False
    """Train through torch.compile."""
    resume: bool = False
    """Go on with the interrupted training in `out`, if there is one."""
    save_minutes: float = 10.0
    """A training that writes to `out` saves its state after every epoch, and in between when this much has passed."""
    cache: Path | None = None
    """Folder with results that several runs share. A run reads from it what it can, and adds the rest."""
    log_with: str | None = None
    """`tensorboard` or `wandb`: the rows of history.csv go there too."""

    def flags(self) -> list[str]:
        """The options as one gives them on the command line, apart from those about folders."""
        found = [] if self.device == "auto" else ["--device", self.device]
        found += ["--workers", str(self.workers)] if self.workers else []
        found += [] if self.precision == "fp32" else ["--precision", self.precision]
        found += ["--compile"] if self.compile else []
        found += [] if self.save_minutes == 10 else ["--save-minutes", f"{self.save_minutes:g}"]
        return found + (["--log-with", self.log_with] if self.log_with else [])
