"""What moves the weights: parameter groups with their rates and decays, timm's optimizers, the cosine schedule."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

from slimvit.config.training import TrainSection
from slimvit.models.base import TimmModule
from slimvit.utils.errors import RecipeError

MIX = "attn.mix"
"""How the names of dense attention's mixes end."""


def parameter_groups(model: TimmModule, section: TrainSection, lr: float, mix_lr_scale: float) -> list[dict[str, Any]]:
    """The parameters that ask for gradients, by learning rate and weight decay.

    No decay on norms, biases and what timm lists (tokens, position tables). With `layer_decay` a group has timm's
    `lr_scale`, smaller towards the input. The mixes of dense attention, without decay too, have the learning rate
    `lr * mix_lr_scale` in every block.
    """
    never = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    if section.layer_decay is None:
        groups = param_groups_weight_decay(model, section.weight_decay, no_weight_decay_list=never)
    else:
        groups = param_groups_layer_decay(model, section.weight_decay, never, layer_decay=section.layer_decay)
    mixes = [p for name, p in model.named_parameters() if name.endswith(MIX) and p.requires_grad]
    for group in groups:
        group["params"] = [p for p in group["params"] if not any(p is mix for mix in mixes)]
    if mixes:
        groups.append({"params": mixes, "lr": lr * mix_lr_scale, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def build_optimizer(groups: list[dict[str, Any]], section: TrainSection, lr: float) -> torch.optim.Optimizer:
    """The optimizer that a section names, with the peak learning rate in every group that has none of its own."""
    given = {"momentum": section.momentum, "betas": section.betas and tuple(section.betas), "eps": section.eps}
    arguments: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    return create_optimizer_v2(groups, section.optimizer, lr=lr, **arguments)


def check_optimizer(section: TrainSection) -> None:
    """Raise `RecipeError` when the optimizer needs a package or a device that is not here."""
    try:
        build_optimizer([{"params": [nn.Parameter(torch.zeros(2, 2))], "weight_decay": 0.0}], section, 1e-3)
    except (AssertionError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(f"optimizer {section.optimizer}: {reason}; choose another, e.g. adamw") from None


def cosine_schedule(optimizer: torch.optim.Optimizer, section: TrainSection, updates: int) -> CosineLRScheduler:
    """Linear warm-up to the peak, then a cosine over the updates that are left; `updates`: those of one epoch."""
    total = max(1, section.epochs * updates)
    warmup = min(round(section.warmup_epochs * updates), total - 1)
    return CosineLRScheduler(
        optimizer,
        t_initial=total - warmup,
        lr_min=section.min_lr,
        warmup_t=warmup,
        warmup_lr_init=section.warmup_lr,
        warmup_prefix=True,  # otherwise the cosine begins under the warm-up, and the peak is never reached
        t_in_epochs=False,
    )


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate now, of the layers that have the whole of it."""
    first = optimizer.param_groups[0]
    return first["lr"] / first.get("lr_scale", 1.0)
