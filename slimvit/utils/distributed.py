"""The engine of a run: one process, or several started by `accelerate launch` or `torchrun`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, broadcast_object_list
from torch import Tensor

from slimvit.utils.device import resolve_device
from slimvit.utils.errors import SlimvitError

T = TypeVar("T")


@dataclass(frozen=True)
class Engine:
    """Hugging Face accelerate's `Accelerator`, with the operations that slimvit needs.

    Every process runs all stages. All compute the same scores, plan and refit; training and evaluation split the
    batches between them. Only the main process writes files and messages.
    """

    accelerator: Accelerator
    compiles: bool = False
    """Whether training compiles the network."""

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    @property
    def processes(self) -> int:
        """The number of processes."""
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, the only one that writes files and messages."""
        return self.accelerator.is_main_process

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        self.accelerator.wait_for_everyone()

    def broadcast(self, value: T) -> T:
        """Return the main process's value in every process, since rounding differs between devices."""
        return broadcast_object_list([value])[0] if self.processes > 1 else value

    def split(self, loader: Any) -> Any:
        """Return a loader of this process's share of the batches."""
        return self.accelerator.prepare_data_loader(loader) if self.processes > 1 else loader

    @property
    def gather(self) -> Callable[[Tensor], Tensor]:
        """A function that joins the rows of all processes in one tensor, every image once and in order."""
        return self.accelerator.gather_for_metrics if self.processes > 1 else lambda tensor: tensor

    def start_log(self, name: str) -> None:
        """Start the tracker of --log-with under `name`."""
        if self.accelerator.log_with:
            self.accelerator.init_trackers(name)

    def log(self, row: dict[str, Any], step: int) -> None:
        """Log the numbers of a row of the history."""
        self.accelerator.log({k: v for k, v in row.items() if isinstance(v, int | float)}, step=step)

    def end_log(self) -> None:
        """Close the trackers."""
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def close(self) -> None:
        """Leave the process group; the processes cannot communicate afterwards."""
        if self.processes > 1:
            self.accelerator.end_training()


def open_engine(
    device: str = "auto",
    precision: str = "fp32",
    compile: bool = False,
    log_with: str | None = None,
    log_dir: Path | None = None,
) -> Engine:
    """Return the engine of one run.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ... or `mps`.
        precision: `fp32`, or `bf16` for the matrix products of training.
        compile: Whether training compiles the network.
        log_with: `tensorboard` or `wandb`.
        log_dir: Folder of the tracker's files.

    Raises:
        SlimvitError: The device, precision or tracker is not available.
    """
    resolved = resolve_device(device)
    check_precision(precision, resolved)
    _check_log(log_with, log_dir)
    single = not torch.distributed.is_initialized()
    AcceleratorState._reset_state(reset_partial_state=single)  # accelerate keeps the settings of the previous engine
    accelerator = Accelerator(
        cpu=resolved.type == "cpu",
        mixed_precision={"fp32": "no", "bf16": "bf16"}[precision],
        dataloader_config=DataLoaderConfiguration(non_blocking=resolved.type == "cuda"),
        log_with=log_with,
        project_dir=None if log_with is None or log_dir is None else str(log_dir),
    )
    return Engine(accelerator, compile)


def _check_log(name: str | None, log_dir: Path | None) -> None:
    if name is not None and find_spec(name) is None:
        raise SlimvitError(f"log-with {name}: the package is not installed; pip install 'slimvit[{name}]'")
    if name == "tensorboard" and log_dir is None:
        raise SlimvitError("log-with tensorboard writes into the run folder; name one with --out")


def check_precision(precision: str, device: torch.device) -> None:
    """Raise `SlimvitError` for a precision that the device does not support."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise SlimvitError(f"precision bf16: {torch.cuda.get_device_name(device)} does not support it; use fp32")
