"""Everything a training carries from one step to the next, in one place."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import DropPath
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from slimvit.config.training import TrainSection
from slimvit.models.base import TimmModule
from slimvit.models.registry import attention_blocks
from slimvit.train.optimizer import build_optimizer, cosine_schedule, parameter_groups

History = list[dict[str, Any]]
"""A row an epoch: epoch (from 1), loss (mean over batches), lr (at the epoch's end), batch (images a step of the
optimizer, where it is not the loader's), seconds, and what was measured."""


@dataclass
class TrainState:
    """`model` is trained in place; `result` is what a user gets.

    Nothing random is part of it: every step draws from a seed of its own (`slimvit.train.loop`).
    """

    model: TimmModule
    optimizer: torch.optim.Optimizer
    schedule: Scheduler
    ema: ModelEmaV3 | None
    epoch: int = 0
    """Epochs that are done."""
    batch: int = 0
    """Batches of the epoch under way that are done."""
    updates: int = 0
    """Steps of the optimizer that are done."""
    total: float = 0.0
    """Sum of the losses of the epoch under way."""
    seconds: float = 0.0
    """Time that the epoch under way took before it was interrupted."""
    history: History = field(default_factory=list)

    @property
    def result(self) -> TimmModule:
        """The moving average where there is one, otherwise the model itself."""
        return self.model if self.ema is None else self.ema.module

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values, from which `restore` goes on bit for bit."""
        counts = {name: getattr(self, name) for name in COUNTS}
        ema = None if self.ema is None else self.ema.module.state_dict()
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "ema": ema, **counts}

    def restore(self, saved: dict[str, Any]) -> None:
        """Become the state that was saved."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(saved["ema"])
        for name in COUNTS:
            setattr(self, name, saved[name])

    def update(self) -> None:
        """Count one step of the optimizer, and let the average follow."""
        self.updates += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.updates)


COUNTS = ("epoch", "batch", "updates", "total", "seconds", "history")


def begin(
    model: TimmModule, section: TrainSection, lr: float, mix_lr_scale: float, updates: int, device: torch.device | str
) -> TrainState:
    """The state before the first step, on a copy of `model`; `updates`: steps of the optimizer in an epoch."""
    model = copy.deepcopy(model).to(device)
    if section.drop_path:  # 0 leaves what the model was built with
        set_drop_path(model, section.drop_path)
    if section.train == "head":
        _freeze_body(model)
    optimizer = build_optimizer(parameter_groups(model, section, lr, mix_lr_scale), section, lr)
    ema = None
    if section.ema_decay is not None:
        ema = ModelEmaV3(model, section.ema_decay, use_warmup=section.ema_warmup)
    return TrainState(model, optimizer, cosine_schedule(optimizer, section, updates), ema)


def classifiers(model: TimmModule) -> tuple[nn.Module, ...]:
    """The classifier, or the two of a distilled DeiT; nothing where a model has none."""
    found = model.get_classifier()
    return tuple(m for m in (found if isinstance(found, tuple) else (found,)) if not isinstance(m, nn.Identity))


def training_mode(model: TimmModule, section: TrainSection) -> None:
    """Training mode, for the classifier alone where nothing else learns."""
    model.train(section.train == "all")
    if section.train == "head":
        for head in classifiers(model):
            head.train()


def finish(state: TrainState, section: TrainSection, like: nn.Module) -> nn.Module:
    """The result in eval mode, without what was put in for training; parameters are as free as those of `like`."""
    if section.drop_path:
        set_drop_path(state.result, 0.0)
    for mine, theirs in zip(state.result.parameters(), like.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
    return state.result.eval()


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Stochastic depth, rising linearly from 0 at the first block to `rate` at the last, in place."""
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
