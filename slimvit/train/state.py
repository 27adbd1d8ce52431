"""The mutable state of a training: model, optimizer, schedule, moving average, counters, history."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import DropPath
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from slimvit.config.training import TrainSection
from slimvit.models.base import TimmModule
from slimvit.models.registry import attention_blocks
from slimvit.train.checkpoint import checked_history, is_number
from slimvit.train.optimizer import build_optimizer, cosine_schedule, parameter_groups

History = list[dict[str, Any]]
"""One row per epoch: epoch (from 1), loss (mean over batches), lr (at the epoch's end), batch (effective batch size, if
it is not the loader's), seconds, and the evaluation figures."""


@dataclass
class TrainState:
    """The state of a training. `model` is trained in place; `result` is the trained network.

    It holds no random state, since every step has its own seed (`slimvit.train.loop`).
    """

    model: TimmModule
    optimizer: torch.optim.Optimizer
    schedule: Scheduler
    ema: ModelEmaV3 | None
    epoch: int = 0
    """Completed epochs."""
    batch: int = 0
    """Completed batches of the current epoch."""
    updates: int = 0
    """Completed optimizer steps."""
    total: float = 0.0
    """Sum of the losses of the current epoch."""
    seconds: float = 0.0
    """Duration of the current epoch so far."""
    history: History = field(default_factory=list)

    @property
    def result(self) -> TimmModule:
        """The moving average, or the model itself without one."""
        return self.model if self.ema is None else self.ema.module

    def to_dict(self) -> dict[str, Any]:
        """Return tensors and plain values from which `restore` continues bit for bit."""
        counts = {name: getattr(self, name) for name in COUNTS}
        ema = None if self.ema is None else self.ema.module.state_dict()
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "ema": ema, **counts}

    def restore(self, saved: dict[str, Any], epochs: int, batches: int) -> None:
        """Load a state that `to_dict` returned, of a training of so many epochs, and at most so many batches of each.

        Raises:
            ValueError: A value is not one of such a training; torch raises other errors too.
        """
        _check_counts(saved, epochs, batches)
        self.model.load_state_dict(saved["model"])
        groups = self.optimizer.state_dict()["param_groups"]  # the recipe and the schedule set what they hold
        self.optimizer.load_state_dict({"state": saved["optimizer"]["state"], "param_groups": groups})
        _check_moments(self.optimizer)
        if self.ema is not None:
            self.ema.module.load_state_dict(saved["ema"])
        for name in COUNTS:
            setattr(self, name, saved[name])

    def update(self) -> None:
        """Count an optimizer step and update the moving average."""
        self.updates += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.updates)


def _check_counts(saved: dict[str, Any], epochs: int, batches: int) -> None:
    most = {"epoch": epochs, "batch": batches, "updates": epochs * batches, "total": math.inf, "seconds": math.inf}
    for name, limit in most.items():
        value = saved[name]
        if not is_number(value) or (limit < math.inf and not (type(value) is int and 0 <= value <= limit)):
            raise ValueError(f"its {name} is {str(value)[:40]}")
    checked_history(saved)


def _check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raise `ValueError` for tensors of the optimizer's state that fit no parameter."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(f"its {name} has shape {list(value.shape)}, expected {list(parameter.shape)}")


COUNTS = ("epoch", "batch", "updates", "total", "seconds", "history")


def begin(
    model: TimmModule, section: TrainSection, lr: float, mix_lr_scale: float, updates: int, device: torch.device | str
) -> TrainState:
    """Return the state before the first step, for a copy of a model.

    Args:
        model: The network; it does not change.
        section: The training's settings.
        lr: Peak learning rate.
        mix_lr_scale: Learning rate of the mixes of dense attention, relative to `lr`.
        updates: Optimizer steps per epoch.
        device: Device of the copy.
    """
    model = copy.deepcopy(model).to(device)
    if section.drop_path:  # 0 keeps the rate that the model was built with
        set_drop_path(model, section.drop_path)
    if section.train == "head":
        _freeze_body(model)
    optimizer = build_optimizer(parameter_groups(model, section, lr, mix_lr_scale), section, lr)
    ema = None
    if section.ema_decay is not None:
        ema = ModelEmaV3(model, section.ema_decay, use_warmup=section.ema_warmup)
    return TrainState(model, optimizer, cosine_schedule(optimizer, section, updates), ema)


def classifiers(model: TimmModule) -> tuple[TimmModule, ...]:
    """Return the classifier of a model, both classifiers of a distilled DeiT, or nothing."""
    heads = model.get_classifier()
    return tuple(m for m in (heads if isinstance(heads, tuple) else (heads,)) if not isinstance(m, nn.Identity))


def training_mode(model: TimmModule, section: TrainSection) -> None:
    """Set training mode, for the classifier alone if nothing else is trained."""
    model.train(section.train == "all")
    if section.train == "head":
        for head in classifiers(model):
            head.train()


def finish(state: TrainState, section: TrainSection, model: nn.Module) -> nn.Module:
    """Return the result in eval mode, without drop-path, with `requires_grad` as in `model`."""
    if section.drop_path:
        set_drop_path(state.result, 0.0)
    for trained, original in zip(state.result.parameters(), model.parameters(), strict=True):
        trained.requires_grad_(original.requires_grad)
    return state.result.eval()


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Set stochastic depth in place, rising linearly from 0 in the first block to `rate` in the last."""
    blocks = attention_blocks(model)
    for i, view in enumerate(blocks):
        p = rate * i / max(1, len(blocks) - 1)
        for name in ("drop_path1", "drop_path2"):
            if hasattr(view.block, name):
                setattr(view.block, name, DropPath(p) if p > 0 else nn.Identity())


def _freeze_body(model: TimmModule) -> None:
    model.requires_grad_(False)
    for head in classifiers(model):
        head.requires_grad_(True)
