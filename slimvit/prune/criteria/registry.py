"""How much each head and neuron matters: one function a criterion, all giving the same kind of scores."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimvit.data.batches import checked_batches
from slimvit.data.loaders import Batches
from slimvit.models.base import AttentionBlock, TimmModule
from slimvit.models.mlp import input_layers, why_neurons_stay
from slimvit.models.modes import device_of
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.models.wrappers import check_unwrapped
from slimvit.prune.costs.base import head_macs, neuron_macs
from slimvit.prune.criteria.calibration import NO_IMAGES, batch_loss, observe
from slimvit.prune.criteria.residual import rank
from slimvit.prune.criteria.statistics import GateSums, MomentSums
from slimvit.prune.torch_pruning import group_importance, neuron_importance
from slimvit.utils.errors import DataError, ModelError, PlanError, nearest
from slimvit.utils.progress import track


@dataclass(frozen=True)
class PartScores:
    """One part of one block. Units (heads or neurons) are named by position among those the block has now."""

    order: tuple[int, ...]
    """All units, in the order in which they go."""
    costs: tuple[float, ...]
    """What the removal of each costs, in that order: after those before it are gone."""
    alone: tuple[float, ...]
    """What each unit, by position, would cost if it were the only one to go."""


@dataclass(frozen=True)
class Scores:
    """Scores of the blocks of one model, and what it kept when they were computed."""

    criterion: str
    plan: SlimPlan
    heads: tuple[PartScores, ...]
    mlp: tuple[PartScores, ...] = ()
    """Of the neurons, where they were scored."""

    def of(self, part: str) -> tuple[PartScores, ...]:
        return self.mlp if part == "mlp" else self.heads

    def table(self) -> list[list[float | None]]:
        """[blocks][original heads]: what removing that head alone would cost; None for heads already gone."""
        rows: list[list[float | None]] = []
        for block, scores in zip(self.plan.blocks, self.heads, strict=True):
            costs = dict(zip(block.kept_heads, scores.alone, strict=True))
            rows.append([costs.get(h) for h in range(block.heads)])
        return rows


def score_parts(
    model: TimmModule,
    batches: Batches,
    criterion: str = "residual",
    seed: int = 0,
    parts: Sequence[str] = ("heads",),
) -> Scores:
    """Score every head of ``model``, and with ``parts`` (`heads`, `mlp`) every hidden neuron; higher means dearer.

    ``batches``: calibration images [B, C, H, W] with labels [B] (-1 where there is none), from the training split.
    ``taylor``, ``fisher`` and ``tp-taylor`` need labels and a classifier. The model is left as it was.
    """
    check_unwrapped(model)
    if criterion not in CRITERIA:
        known = ", ".join(CRITERIA)
        raise PlanError(f"criterion {criterion!r} is not known{nearest(criterion, CRITERIA)}; choose from {known}")
    if criterion in NEEDS_CLASSIFIER and model.num_classes == 0:
        raise DataError(f"criterion {criterion} needs a classifier, but the model has none; use residual or magnitude")
    labels_for = f"criterion {criterion}" if criterion in NEEDS_CLASSIFIER else None
    batches = checked_batches(batches, model, labels_for=labels_for)
    plan = plan_of(model)
    if "mlp" in parts and not all(b.neurons for b in plan.blocks):
        block = next(b for b, planned in zip(attention_blocks(model), plan.blocks, strict=True) if not planned.neurons)
        raise ModelError(
            f"{block.name}: its MLP is none whose neurons slimvit can remove; {why_neurons_stay(block.mlp)}; cut heads "
            "alone (--parts heads)"
        )
    found = CRITERIA[criterion](model, batches, seed, tuple(parts))
    return Scores(criterion, plan, tuple(found["heads"]), tuple(found.get("mlp", ())))


ScoresByPart = dict[str, list[PartScores]]
Parts = tuple[str, ...]


def _residual(model: TimmModule, batches: Batches, seed: int, parts: Parts) -> ScoresByPart:
    """The rise of the loss after the refit, see rise.py."""
    statistics = observe(model, batches, "signs" if model.num_classes else "features", MomentSums, seed, parts)
    found: ScoresByPart = {part: [] for part in parts}
    for i, block in enumerate(attention_blocks(model)):
        for part in parts:
            out, width = (block.attn.proj, block.head_dim) if part == "heads" else (block.mlp.fc2, 1)
            found[part].append(PartScores(*rank(statistics[part][i], out.weight.detach().cpu().T, width)))
    return found


def _taylor(model: TimmModule, batches: Batches, seed: int, parts: Parts) -> ScoresByPart:
    """mean over images of abs(dLoss/dm), Michel, Levy and Neubig, NeurIPS 2019."""
    seen = observe(model, batches, "labels", GateSums, seed, parts)
    return {part: [_fixed(s.absolute) for s in seen[part]] for part in parts}


def _fisher(model: TimmModule, batches: Batches, seed: int, parts: Parts) -> ScoresByPart:
    """mean over images of (dLoss/dm)^2, Kwon et al., NeurIPS 2022."""
    seen = observe(model, batches, "labels", GateSums, seed, parts)
    return {part: [_fixed(s.square) for s in seen[part]] for part in parts}


def _magnitude(model: TimmModule, batches: Batches, seed: int, parts: Parts) -> ScoresByPart:
    """L2 norm of all weights that go with the head or neuron, Han et al., NeurIPS 2015."""
    norms = {"heads": _head_norms, "mlp": _neuron_norms}
    return {part: [_fixed(norms[part](b)) for b in attention_blocks(model)] for part in parts}


def _head_norms(block: AttentionBlock) -> Tensor:
    attn = block.attn
    if attn.num_heads == 0:
        return torch.zeros(0)
    squares = attn.proj.weight.detach().square().sum(0).view(attn.num_heads, -1).sum(1)
    for rows in block.head_parts.rows:
        by_head = rows.layer.weight.detach().square().sum(1).view(rows.copies, attn.num_heads, rows.width)
        squares = squares + by_head.sum((0, 2))
    for part in block.head_parts.slices:
        if not part.name.endswith("_bias"):  # biases of layers count nowhere
            entries = getattr(attn, part.name).detach().square().movedim(part.dim, 0)
            squares = squares + entries.reshape(attn.num_heads, -1).sum(1)
    return squares.sqrt()


def _neuron_norms(block: AttentionBlock) -> Tensor:
    fc2 = block.mlp.fc2
    squares = fc2.weight.detach().square().sum(0)
    for layer, copies in input_layers(block.mlp):
        squares = squares + layer.weight.detach().square().sum(1).view(copies, -1).sum(0)
    return squares.sqrt()


def _random(model: TimmModule, batches: Batches, seed: int, parts: Parts) -> ScoresByPart:
    """A neuron's number is smaller by as much as it costs less, so that both go at the same rate."""
    generator = torch.Generator().manual_seed(seed)
    blocks = attention_blocks(model)
    found = {"heads": [_fixed(torch.rand(b.attn.num_heads, generator=generator)) for b in blocks]}
    if "mlp" in parts:
        found["mlp"] = [
            _fixed(torch.rand(b.mlp.fc2.in_features, generator=generator) * neuron_macs(b) / head_macs(b))
            for b in blocks
        ]
    return found


def _tp_magnitude(model: TimmModule, batches: Batches, seed: int, parts: Parts) -> ScoresByPart:
    """Torch-Pruning's group magnitude: squared L2, relative to the mean of the block."""
    return _group_scores(copy.deepcopy(model), "magnitude", parts)


def _tp_taylor(model: TimmModule, batches: Batches, seed: int, parts: Parts) -> ScoresByPart:
    """Torch-Pruning's group Taylor: abs(weight x gradient of the loss), relative to the mean of the block."""
    probe = copy.deepcopy(model).eval().requires_grad_(False)
    for block in attention_blocks(probe):
        for layer in (m for part in (block.attn, block.mlp) for m in part.modules() if isinstance(m, nn.Linear)):
            layer.weight.requires_grad_(True)
            layer.weight.grad = torch.zeros_like(layer.weight)
    generator, images_seen = torch.Generator().manual_seed(seed), 0
    with torch.enable_grad():
        for images, labels in track(batches, f"scoring {' and '.join(parts)}"):
            images_seen += len(images)
            batch_loss(probe, images.to(device_of(probe)), labels, "labels", generator).backward()
    if images_seen == 0:
        raise DataError(NO_IMAGES)
    return _group_scores(probe, "taylor", parts)


def _group_scores(probe: nn.Module, kind: str, parts: Parts) -> ScoresByPart:
    """``probe`` is a copy of the model, and spent afterwards."""
    blocks = attention_blocks(probe)
    found: ScoresByPart = {}
    if "mlp" in parts:
        found["mlp"] = [
            _fixed(neuron_importance(b.mlp, kind) if b.mlp.fc2.in_features else torch.zeros(0)) for b in blocks
        ]
    found["heads"] = [_fixed(group_importance(b, kind) if b.attn.num_heads else torch.zeros(0)) for b in blocks]
    return found


def _fixed(values: Tensor) -> PartScores:
    """A number a unit, whatever else is removed."""
    numbers = [float(v) for v in values]
    order = sorted(range(len(numbers)), key=lambda i: (numbers[i], i))
    return PartScores(tuple(order), tuple(numbers[i] for i in order), tuple(numbers))


CRITERIA: dict[str, Callable[[TimmModule, Batches, int, Parts], ScoresByPart]] = {
    "residual": _residual,
    "fisher": _fisher,
    "taylor": _taylor,
    "magnitude": _magnitude,
    "random": _random,
    "tp-magnitude": _tp_magnitude,
    "tp-taylor": _tp_taylor,
}
NEEDS_CLASSIFIER = {"fisher", "taylor", "tp-taylor"}
