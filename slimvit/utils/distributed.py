"""Where a run computes: one process here, or many that `accelerate launch` or `torchrun` started."""

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
    """Hugging Face accelerate's Accelerator, and what slimvit needs beside it.

    Every process carries out the whole run: scores, plan and refit are the same everywhere, training and evaluation
    share their batches out, and the main process alone writes and speaks.
    """

    accelerator: Accelerator
    compiles: bool = False
    """Whether the network is compiled for training."""

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
        """Whether this is the main process, which writes files and messages."""
        return self.accelerator.is_main_process

    def wait(self) -> None:
        """Until every process is here."""
        self.accelerator.wait_for_everyone()

    def agreed(self, value: T) -> T:
        """The main process's value, in every process: what rounding may make differ from one device to the next."""
        return broadcast_object_list([value])[0] if self.processes > 1 else value

    def shared(self, loader: Any) -> Any:
        """A loader of this process's batches alone."""
        return self.accelerator.prepare_data_loader(loader) if self.processes > 1 else loader

    @property
    def gather(self) -> Callable[[Tensor], Tensor]:
        """What makes one tensor of what the processes have for a batch each, every image once and in order."""
        return self.accelerator.gather_for_metrics if self.processes > 1 else lambda tensor: tensor

    def start_log(self, name: str) -> None:
        """Begin what --log-with asked for, under `name`."""
        if self.accelerator.log_with:
            self.accelerator.init_trackers(name)

    def log(self, row: dict[str, Any], step: int) -> None:
        """The numbers of a row of the history."""
        self.accelerator.log({k: v for k, v in row.items() if isinstance(v, int | float)}, step=step)

    def end_log(self) -> None:
        """Close the trackers."""
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def close(self) -> None:
        """Let the other processes go; nothing can be shared with them afterwards."""
        if self.processes > 1:
            self.accelerator.end_training()


def open_engine(
    device: str = "auto",
    precision: str = "fp32",
    compile: bool = False,
    log_with: str | None = None,
    log_dir: Path | None = None,
) -> Engine:
    """The engine for one run.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ... or `mps`.
        precision: `fp32`, or `bf16` for the products of a training.
        compile: Whether training compiles the network.
        log_with: `tensorboard` or `wandb`.
        log_dir: Folder for the files of the tracker.

    Raises:
        SlimvitError: For a device, precision or tracker that is not available.
    """
    place = resolve_device(device)
    check_precision(precision, place)
    _check_log(log_with, log_dir)
    alone = not torch.distributed.is_initialized()
    AcceleratorState._reset_state(reset_partial_state=alone)  # a process may run more than once, each time as asked
    accelerator = Accelerator(
        cpu=place.type == "cpu",
        mixed_precision={"fp32": "no", "bf16": "bf16"}[precision],
        dataloader_config=DataLoaderConfiguration(non_blocking=place.type == "cuda"),
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
    """Raise `SlimvitError` for a precision that the device cannot compute in."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise SlimvitError(f"precision bf16: {torch.cuda.get_device_name(device)} cannot compute in it; use fp32")
