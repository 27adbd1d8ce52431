"""How much each head matters: one function a criterion, all giving the same kind of scores."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from slimvit.errors import DataError, PlanError, nearest
from slimvit.models.family import AttentionBlock, TimmModule, attention_blocks, plan_of
from slimvit.models.modes import device_of
from slimvit.plan import SlimPlan
from slimvit.progress import track
from slimvit.prune.observe import NO_IMAGES, Batches, HeadStatistics, batch_loss, observe
from slimvit.prune.torch_pruning import group_importance

DAMPING = 0.01
"""Added to the covariance's diagonal, in units of its mean, before it is inverted (`residual`)."""


class BlockScores(Protocol):
    """The scores of one block. Heads are named by position among those the block has now."""

    def removal_costs(self, kept: Sequence[int]) -> list[float]:
        """What each of the ``kept`` heads would cost if it were the next to go."""


@dataclass(frozen=True)
class FixedScores:
    """A number a head, whatever else is removed."""

    values: tuple[float, ...]

    def removal_costs(self, kept: Sequence[int]) -> list[float]:
        return [self.values[h] for h in kept]


@dataclass(frozen=True)
class ResidualScores:
    """The loss that stays after the heads left have been refitted to stand in for the one removed.

    ``hessian`` S [k, k]: covariance of the concatenated head outputs. ``weight`` Wo [k, C]. ``metric`` F [C, C]:
    second moment of the loss gradient at the branch's output. With the heads K kept, M = S_KK^-1 and the refitted
    weights W = M S_K: Wo, removing head h raises trace(F E^T E), E the branch's error, by
    trace(F W_h^T (M_hh)^-1 W_h): optimal brain surgeon (Hassibi and Stork 1993) with a head for a weight.
    """

    hessian: Tensor
    weight: Tensor
    metric: Tensor
    head_dim: int

    def removal_costs(self, kept: Sequence[int]) -> list[float]:
        d = self.head_dim
        index = torch.tensor([h * d + i for h in kept for i in range(d)], dtype=torch.long)
        inverse = torch.linalg.inv(self.hessian[index][:, index])
        weight = inverse @ (self.hessian[index] @ self.weight)
        costs = []
        for i in range(len(kept)):
            own = slice(i * d, (i + 1) * d)
            raised = torch.linalg.solve(inverse[own, own], weight[own])
            costs.append(float(((weight[own] @ self.metric) * raised).sum()))
        return costs


@dataclass(frozen=True)
class HeadScores:
    """Scores of every block of one model, and the heads it had when they were computed."""

    criterion: str
    plan: SlimPlan
    blocks: tuple[BlockScores, ...]

    def table(self) -> list[list[float | None]]:
        """[blocks][original heads]: what removing that head alone would cost; None for heads already gone."""
        rows: list[list[float | None]] = []
        for block, scores in zip(self.plan.blocks, self.blocks, strict=True):
            costs = dict(zip(block.kept_heads, scores.removal_costs(range(len(block.kept_heads))), strict=True))
            rows.append([costs.get(h) for h in range(block.heads)])
        return rows


def score_heads(model: TimmModule, batches: Batches, criterion: str = "residual", seed: int = 0) -> HeadScores:
    """Score every head of ``model``; higher means dearer to remove.

    ``batches``: calibration images [B, C, H, W] with labels [B] (-1 where there is none), from the training split.
    ``taylor``, ``fisher`` and ``tp-taylor`` need labels and a classifier. The model is left as it was.
    """
    if criterion not in CRITERIA:
        known = ", ".join(CRITERIA)
        raise PlanError(f"criterion {criterion!r} is not known{nearest(criterion, CRITERIA)}; choose from {known}")
    blocks = attention_blocks(model)
    if criterion in NEEDS_CLASSIFIER and model.num_classes == 0:
        raise DataError(f"criterion {criterion} needs a classifier, but the model has none; use residual or magnitude")
    return HeadScores(criterion, plan_of(model), tuple(CRITERIA[criterion](model, blocks, batches, seed)))


def _residual(model: TimmModule, blocks: list[AttentionBlock], batches: Batches, seed: int) -> list[BlockScores]:
    statistics = observe(model, batches, "sampled" if model.num_classes else "features", seed)
    return [_residual_block(b, s) for b, s in zip(blocks, statistics, strict=True)]


def _residual_block(block: AttentionBlock, seen: HeadStatistics) -> BlockScores:
    if block.attn.num_heads == 0:
        return FixedScores(())
    k = len(seen.covariance)
    damped = seen.covariance + DAMPING * seen.covariance.diagonal().mean().clamp_min(1e-12) * torch.eye(k).double()
    weight = block.attn.proj.weight.detach().cpu().double().T
    return ResidualScores(damped, weight, seen.gradient, block.head_dim)


def _taylor(model: nn.Module, blocks: list[AttentionBlock], batches: Batches, seed: int) -> list[BlockScores]:
    """mean over images of abs(dLoss/dm_h), Michel, Levy and Neubig, NeurIPS 2019."""
    return [_fixed(s.gate_gradient.abs().mean(0)) for s in observe(model, batches, "labels", seed)]


def _fisher(model: nn.Module, blocks: list[AttentionBlock], batches: Batches, seed: int) -> list[BlockScores]:
    """mean over images of (dLoss/dm_h)^2, Kwon et al., NeurIPS 2022."""
    return [_fixed(s.gate_gradient.square().mean(0)) for s in observe(model, batches, "labels", seed)]


def _magnitude(model: nn.Module, blocks: list[AttentionBlock], batches: Batches, seed: int) -> list[BlockScores]:
    """L2 norm of all weights that go with the head, Han et al., NeurIPS 2015."""
    return [_fixed(_head_norms(b)) for b in blocks]


def _head_norms(block: AttentionBlock) -> Tensor:
    attn = block.attn
    if attn.num_heads == 0:
        return torch.zeros(0)
    shape = (attn.num_heads, block.head_dim)
    squares = attn.qkv.weight.detach().square().sum(1).view(3, *shape).sum((0, 2))
    squares = squares + attn.proj.weight.detach().square().sum(0).view(shape).sum(1)
    if getattr(attn, "gate", None) is not None:
        squares = squares + attn.gate.weight.detach().square().sum(1).view(shape).sum(1)
    if hasattr(attn, "relative_position_bias_table"):
        squares = squares + attn.relative_position_bias_table.detach().square().sum(0)
    return squares.sqrt()


def _random(model: nn.Module, blocks: list[AttentionBlock], batches: Batches, seed: int) -> list[BlockScores]:
    generator = torch.Generator().manual_seed(seed)
    return [_fixed(torch.rand(b.attn.num_heads, generator=generator)) for b in blocks]


def _tp_magnitude(model: nn.Module, blocks: list[AttentionBlock], batches: Batches, seed: int) -> list[BlockScores]:
    """Torch-Pruning's group magnitude: squared L2, relative to the mean of the block."""
    return _group_scores(copy.deepcopy(model), "magnitude")


def _tp_taylor(model: nn.Module, blocks: list[AttentionBlock], batches: Batches, seed: int) -> list[BlockScores]:
    """Torch-Pruning's group Taylor: abs(weight x gradient of the loss), relative to the mean of the block."""
    probe = copy.deepcopy(model).eval().requires_grad_(False)
    for block in attention_blocks(probe):
        for layer in (block.attn.proj, getattr(block.attn, "qkv", None), getattr(block.attn, "gate", None)):
            if layer is not None:
                layer.weight.requires_grad_(True)
                layer.weight.grad = torch.zeros_like(layer.weight)
    generator, images_seen = torch.Generator().manual_seed(seed), 0
    with torch.enable_grad():
        for images, labels in track(batches, "scoring heads"):
            images_seen += len(images)
            batch_loss(probe, images.to(device_of(probe)), labels, "labels", generator).backward()
    if images_seen == 0:
        raise DataError(NO_IMAGES)
    return _group_scores(probe, "taylor")


def _group_scores(probe: nn.Module, kind: str) -> list[BlockScores]:
    """``probe`` is a copy of the model, and spent afterwards."""
    blocks = attention_blocks(probe)
    return [_fixed(group_importance(b, kind) if b.attn.num_heads else torch.zeros(0)) for b in blocks]


def _fixed(values: Tensor) -> FixedScores:
    return FixedScores(tuple(float(v) for v in values))


CRITERIA: dict[str, Callable[[nn.Module, list[AttentionBlock], Batches, int], list[BlockScores]]] = {
    "residual": _residual,
    "fisher": _fisher,
    "taylor": _taylor,
    "magnitude": _magnitude,
    "random": _random,
    "tp-magnitude": _tp_magnitude,
    "tp-taylor": _tp_taylor,
}
NEEDS_CLASSIFIER = {"fisher", "taylor", "tp-taylor"}
