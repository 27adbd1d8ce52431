"""Scores as tensors, so that several runs can share them through a file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from slimvit.errors import PlanError
from slimvit.plan import SlimPlan
from slimvit.prune.criteria import BlockScores, FixedScores, HeadScores, ResidualScores


def write_scores(scores: HeadScores, path: Path) -> None:
    """A .safetensors file: one tensor a block, or what :class:`ResidualScores` is made of."""
    tensors: dict[str, Tensor] = {}
    for i, block in enumerate(scores.blocks):
        tensors |= {f"{i}.{name}": tensor.contiguous() for name, tensor in _tensors(block).items()}
    save_file(tensors, path, {"criterion": scores.criterion})


def read_scores(path: Path, plan: SlimPlan) -> HeadScores:
    """What :func:`write_scores` wrote, for a model that keeps ``plan``'s heads."""
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        criterion = file.metadata()["criterion"]
    blocks = tuple(_block(found, f"{i}.") for i in range(len(plan.blocks)))
    return HeadScores(criterion, plan, blocks)


def _tensors(block: BlockScores) -> dict[str, Tensor]:
    if isinstance(block, FixedScores):
        return {"values": torch.tensor(block.values, dtype=torch.float64)}
    if isinstance(block, ResidualScores):
        parts = {name: getattr(block, name) for name in ("hessian", "weight", "metric")}
        return parts | {"head_dim": torch.tensor(block.head_dim)}
    raise PlanError(f"scores of kind {type(block).__name__} cannot be kept in a file")


def _block(found: dict[str, Tensor], prefix: str) -> BlockScores:
    parts = {name.removeprefix(prefix): t for name, t in found.items() if name.startswith(prefix)}
    if "values" in parts:
        return FixedScores(tuple(parts["values"].tolist()))
    return ResidualScores(parts["hessian"], parts["weight"], parts["metric"], int(parts["head_dim"]))
