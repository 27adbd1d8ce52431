"""The built-in criteria, and `score_parts`, which scores a model by any criterion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from slimvit.config import choices
from slimvit.data.batches import checked_batches
from slimvit.data.loaders import Batches
from slimvit.models.base import TimmModule
from slimvit.models.parts.registry import PARTS, everywhere, labels, part_of
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import attention_blocks, check_unwrapped, plan_of
from slimvit.prune.criteria import baselines, gradient, group_importance, query_key, residual, tokens
from slimvit.prune.criteria.base import CRITERIA, PART_SCORES, Criterion, ScoreFunction, ScoresByPart
from slimvit.prune.criteria.scores import PartScores, Scores, fixed
from slimvit.utils.errors import DataError, ModelError, PlanError, nearest

BUILT_IN = (residual, gradient, baselines, group_importance, query_key, tokens)
"""The modules that register the built-in criteria, and scores of parts."""


def score_parts(
    model: TimmModule,
    batches: Batches,
    criterion: str | ScoreFunction = "residual",
    seed: int = 0,
    parts: Sequence[str] | None = None,
) -> Scores:
    """Score the units of a model. A score estimates the rise of the loss when the unit is removed.

    Args:
        model: Any supported timm model, pruned or not. It is left unchanged.
        batches: Calibration images [B, C, H, W] with labels [B] (-1 without a label), from the training split.
        criterion: Name of a criterion, or a function `model, batches -> scores by part` (one number per unit, block
            by block). `taylor`, `fisher` and `tp-taylor` need labels and a classifier.
        seed: Seed of the criterion's random numbers.
        parts: Parts to score, such as `("heads", "mlp")`; by default the heads.

    Raises:
        PlanError: The criterion or a part is unknown, or the scores of a function do not fit the model.
        ModelError: The model has no removable units of a part.
        DataError: The criterion needs labels, a classifier or images that are missing.
    """
    check_unwrapped(model)
    names = tuple(part_of(name).name for name in parts or everywhere())
    chosen = criterion_of(criterion)
    if chosen.needs_classifier and model.num_classes == 0:
        raise DataError(
            f"criterion {chosen.name} needs a classifier, but the model has none; use residual or magnitude"
        )
    labels_for = f"criterion {chosen.name}" if chosen.needs_classifier else None
    batches, plan = checked_batches(batches, model, labels_for=labels_for), plan_of(model)
    for name in names:
        _check_units(model, plan, name)
    values = _raw_scores(chosen, model, batches, seed, names)
    return Scores(chosen.name, plan, {name: _checked(values, name, plan, chosen.name) for name in names})


def criterion_of(criterion: str | ScoreFunction) -> Criterion:
    """Return the criterion of a name, or of a function; raises `PlanError` for an unknown name."""
    if not isinstance(criterion, str):
        return Criterion(getattr(criterion, "__name__", "of your own"), criterion)
    try:
        return CRITERIA[choices.CRITERIA.check(criterion)]
    except ValueError:
        known = ", ".join(choices.CRITERIA)
        hint = nearest(criterion, CRITERIA, 1)
        raise PlanError(f"criterion {criterion!r} is not known{hint}; choose from {known}") from None


def _raw_scores(
    criterion: Criterion, model: TimmModule, batches: Batches, seed: int, names: tuple[str, ...]
) -> ScoresByPart:
    """The criterion's scores. Parts without a last layer, which it cannot observe, have a function of their own."""
    own = [name for name in names if PARTS[name].score is not None or name in PART_SCORES]
    observed = tuple(name for name in names if name not in own)
    scores = dict(criterion(model, batches, seed, observed)) if observed else {}
    for name in own:
        if name not in scores:
            scores[name] = _own_scores(criterion, name, model, batches, seed)
    return scores


def _own_scores(criterion: Criterion, name: str, model: TimmModule, batches: Batches, seed: int) -> Any:
    if name in PART_SCORES:
        return PART_SCORES[name](model, batches if criterion.needs_images else (), seed)
    return PARTS[name].score(model)  # type: ignore[misc]


def _check_units(model: TimmModule, plan: SlimPlan, name: str) -> None:
    part = PARTS[name]
    for view, block in zip(attention_blocks(model), plan.blocks, strict=True):
        if not block.of(name).total:
            raise ModelError(
                f"{view.name}: slimvit cannot remove {part.units} of its {part.branch or 'block'}: "
                f"{part.why_not(view) or 'it has none'}; cut {labels(everywhere())} alone (--parts "
                f"{','.join(everywhere())})"
            )


def _checked(raw: ScoresByPart, name: str, plan: SlimPlan, criterion: str) -> tuple[PartScores, ...]:
    """The scores of a part, checked against the blocks and units of the model."""
    if name not in raw:
        raise PlanError(f"criterion {criterion} gives no scores of {name}, only of {', '.join(raw) or 'nothing'}")
    if len(raw[name]) != len(plan.blocks):
        raise PlanError(
            f"criterion {criterion} scores {name} of {len(raw[name])} blocks, but the model has {len(plan.blocks)}"
        )
    scores = tuple(_part_scores(values) for values in raw[name])
    for block, part_scores in zip(plan.blocks, scores, strict=True):
        units, numbers = len(block.of(name).kept), part_scores.alone
        if len(numbers) != units:
            raise PlanError(
                f"criterion {criterion} gives {len(numbers)} scores of {name} in {block.name}, which has {units} "
                f"{PARTS[name].units}; give one number per unit"
            )
        if any(map(math.isnan, numbers)):
            raise PlanError(f"criterion {criterion} gives {block.name} a score of {name} that is not a number")
    return scores


def _part_scores(values: Any) -> PartScores:
    return values if isinstance(values, PartScores) else fixed(values)
