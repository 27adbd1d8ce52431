"""The training loop: AdamW, timm's cosine schedule with warm-up, weight-decay groups, mixup, gradient clipping."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.layers import DropPath
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from slimvit.errors import RecipeError, SlimvitError
from slimvit.models.family import TimmModule, attention_blocks
from slimvit.progress import track
from slimvit.recipe import TrainSection
from slimvit.train.distill import Loss

History = list[dict[str, Any]]
"""A row an epoch: epoch (from 1), loss (mean over steps), lr (at the epoch's end), seconds, and what was measured."""


class Diverged(SlimvitError):
    """Training produced a loss that is no number."""


def train(
    model: TimmModule,
    loader: DataLoader,
    loss: Loss,
    section: TrainSection,
    *,
    lr: float,
    device: torch.device | str = "cpu",
    seed: int = 0,
    mix_lr_scale: float = 1.0,
    what: str = "fine-tuning",
    after_epoch: Callable[[nn.Module, dict[str, Any]], None] = lambda model, row: None,
) -> tuple[nn.Module, History]:
    """A trained copy of ``model`` in eval mode on ``device``, and a row an epoch.

    ``loader`` yields (images [B, C, H, W], labels [B]) and has ``set_epoch``. ``lr`` is the peak learning rate when
    the section names none. ``after_epoch`` may measure the model and add to the epoch's row. Raises
    :class:`Diverged` with step and learning rate when the loss is NaN or infinite.
    """
    model = copy.deepcopy(model).to(device)
    if section.drop_path:  # 0 leaves what the model was built with
        _set_drop_path(model, section.drop_path)
    optimizer = torch.optim.AdamW(_groups(model, section, section.lr or lr, mix_lr_scale), lr=section.lr or lr)
    steps = max(1, len(loader))
    schedule = _schedule(optimizer, section, steps)
    mix = _mixing(section, model.num_classes, _images_a_step(loader))
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # timm's Mixup draws from numpy's global generator
    history: History = []
    for epoch in range(section.epochs):
        started = time.perf_counter()
        loader.set_epoch(epoch)  # type: ignore[attr-defined]
        model.train()
        total = 0.0
        for step, (images, targets) in enumerate(track(loader, f"{what} {epoch + 1}/{section.epochs}", steps)):
            schedule.step_update(epoch * steps + step)
            images, targets = images.to(device), targets.to(device)
            images, targets = mix(images, targets)
            value = _step(model, optimizer, loss, images, targets, section.clip_grad)
            if not math.isfinite(value):
                rate = optimizer.param_groups[0]["lr"]
                raise Diverged(
                    f"{what}: the loss became {value} in epoch {epoch + 1}, step {step + 1}, at lr {rate:.2e}; "
                    "give a smaller learning rate"
                )
            total += value
        row = {"epoch": epoch + 1, "loss": total / steps, "lr": optimizer.param_groups[0]["lr"]}
        row["seconds"] = round(time.perf_counter() - started, 2)
        model.eval()
        after_epoch(model, row)
        history.append(row)
    if section.drop_path:
        _set_drop_path(model, 0.0)
    return model.eval(), history


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, images: Tensor, targets: Tensor, clip: float | None
) -> float:
    value = loss(model, images, targets)
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    if torch.isfinite(value):  # never step on a broken gradient
        optimizer.step()
    return float(value.detach())


def _groups(model: TimmModule, section: TrainSection, lr: float, mix_lr_scale: float) -> list[dict[str, Any]]:
    """No weight decay on norms, biases and what timm lists (tokens, position tables); the mixes of dense attention,
    without decay too, have a learning rate of their own."""
    never = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = param_groups_weight_decay(model, section.weight_decay, no_weight_decay_list=never)
    mixes = [p for name, p in model.named_parameters() if name.endswith("attn.mix")]
    for group in groups:
        group["params"] = [p for p in group["params"] if not any(p is mix for mix in mixes)]
    return [*groups, {"params": mixes, "lr": lr * mix_lr_scale, "weight_decay": 0.0}] if mixes else groups


def _schedule(optimizer: torch.optim.Optimizer, section: TrainSection, steps: int) -> CosineLRScheduler:
    """Linear warm-up to the peak, then a cosine over the steps that are left."""
    total = max(1, section.epochs * steps)
    warmup = min(round(section.warmup_epochs * steps), total - 1)
    return CosineLRScheduler(
        optimizer,
        t_initial=total - warmup,
        lr_min=section.min_lr,
        warmup_t=warmup,
        warmup_lr_init=0.0,
        warmup_prefix=True,  # otherwise the cosine begins under the warm-up, and the peak is never reached
        t_in_epochs=False,
    )


def check_mixing(section: TrainSection, images_a_step: int) -> None:
    """Raise :class:`RecipeError` when mixup or cutmix is asked for and the images of a step make no pairs."""
    if (section.mixup or section.cutmix) and images_a_step % 2:
        raise RecipeError(
            f"mixup and cutmix mix images in pairs, but a step has {images_a_step}; give an even batch_size, "
            "or leave both out"
        )


def _mixing(section: TrainSection, num_classes: int, images_a_step: int) -> Callable[[Tensor, Tensor], Any]:
    """(images, targets [B]) -> (mixed images, soft targets [B, K]), or both as they were."""
    check_mixing(section, images_a_step)
    if section.mixup == 0 and section.cutmix == 0:
        return lambda images, targets: (images, targets)
    mixup = Mixup(section.mixup, section.cutmix, label_smoothing=0.0, num_classes=max(1, num_classes))
    # without labels (-1) or classes no loss looks at the targets, but timm still wants to index with them
    return lambda images, targets: mixup(images, targets.clamp_min(0) if num_classes else torch.zeros_like(targets))


def _images_a_step(loader: DataLoader) -> int:
    return min(loader.batch_size or 1, len(loader.dataset))  # type: ignore[arg-type]


def _set_drop_path(model: nn.Module, rate: float) -> None:
    """Stochastic depth, rising linearly from 0 at the first block to ``rate`` at the last, in place."""
    blocks = attention_blocks(model)
    for i, view in enumerate(blocks):
        p = rate * i / max(1, len(blocks) - 1)
        for name in ("drop_path1", "drop_path2"):
            if hasattr(view.block, name):
                setattr(view.block, name, DropPath(p) if p > 0 else nn.Identity())
