"""Parameter groups, timm's optimizers and the cosine schedule."""

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
"""Suffix of the parameter names of dense attention's mixes."""


def parameter_groups(model: TimmModule, section: TrainSection, lr: float, mix_lr_scale: float) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and weight decay.

    Norms, biases, the mixes of dense attention, and the tokens and position tables that timm lists get no weight decay.
    With `layer_decay`, groups have timm's `lr_scale`, which falls towards the input. Mixes have the learning rate
    `lr * mix_lr_scale` in every block.
    """
    undecayed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    if section.layer_decay is None:
        groups = param_groups_weight_decay(model, section.weight_decay, no_weight_decay_list=undecayed)
    else:
        groups = param_groups_layer_decay(model, section.weight_decay, undecayed, layer_decay=section.layer_decay)
    mixes = [p for name, p in model.named_parameters() if name.endswith(MIX) and p.requires_grad]
    for group in groups:
        group["params"] = [p for p in group["params"] if not any(p is mix for mix in mixes)]
    if mixes:
        groups.append({"params": mixes, "lr": lr * mix_lr_scale, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def build_optimizer(groups: list[dict[str, Any]], section: TrainSection, lr: float) -> torch.optim.Optimizer:
    """Build the optimizer of a section; `lr` is the peak learning rate of groups without their own."""
    settings = {"momentum": section.momentum, "betas": section.betas and tuple(section.betas), "eps": section.eps}
    arguments: dict[str, Any] = {k: v for k, v in settings.items() if v is not None}
    return create_optimizer_v2(groups, section.optimizer, lr=lr, **arguments)


def check_optimizer(section: TrainSection) -> None:
    """Raise `RecipeError` if the optimizer needs a missing package or device."""
    try:
        build_optimizer([{"params": [nn.Parameter(torch.zeros(2, 2))], "weight_decay": 0.0}], section, 1e-3)
    except (AssertionError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(f"optimizer {section.optimizer}: {reason}; choose another, e.g. adamw") from None


def cosine_schedule(optimizer: torch.optim.Optimizer, section: TrainSection, updates: int) -> CosineLRScheduler:
    """Build the schedule: linear warm-up to the peak, then a cosine.

    Args:
        optimizer: The optimizer.
        section: Epochs, warm-up and smallest learning rate.
        updates: Optimizer steps per epoch.
    """
    total = max(1, section.epochs * updates)
    warmup = min(round(section.warmup_epochs * updates), total - 1)
    return CosineLRScheduler(
        optimizer,
        t_initial=total - warmup,
        lr_min=section.min_lr,
        warmup_t=warmup,
        warmup_lr_init=section.warmup_lr,
        warmup_prefix=True,  # otherwise the cosine starts during the warm-up, and the peak is never reached
        t_in_epochs=False,
    )


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the present learning rate without layer decay."""
    first = optimizer.param_groups[0]
    return first["lr"] / first.get("lr_scale", 1.0)
