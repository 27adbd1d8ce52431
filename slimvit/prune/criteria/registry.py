"""The criteria by their words, and the scores that they give the units of a model."""

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
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.models.wrappers import check_unwrapped
from slimvit.prune.criteria import gradient, group_importance, magnitude, random, residual
from slimvit.prune.criteria.base import CRITERIA, Criterion, Found, ScoreFunction
from slimvit.prune.criteria.scores import PartScores, Scores, fixed
from slimvit.utils.errors import DataError, ModelError, PlanError, nearest

BUILT_IN = (residual, gradient, magnitude, random, group_importance)
"""Modules that register the criteria that come along."""


def score_parts(
    model: TimmModule,
    batches: Batches,
    criterion: str | ScoreFunction = "residual",
    seed: int = 0,
    parts: Sequence[str] | None = None,
) -> Scores:
    """Score the units of `model`; a higher score means a dearer unit. The model is left as it was.

    Args:
        model: Any supported timm model, pruned or not.
        batches: Calibration images [B, C, H, W] with labels [B] (-1 where there is none), from the training split.
        criterion: The word of a criterion, or a function `model, batches -> scores by part` (one number a unit, block
            by block). `taylor`, `fisher` and `tp-taylor` need labels and a classifier.
        seed: Of whatever the criterion draws at random.
        parts: What to score, such as `("heads", "mlp")`; by default the parts that every block has, the heads.

    Raises:
        PlanError: The criterion or a part is not known, or a function's scores do not fit the model.
        ModelError: The model has no units of a part that could be removed.
        DataError: The criterion needs labels, a classifier or images that are not there.
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
    found = _found(chosen, model, batches, seed, names)
    return Scores(chosen.name, plan, {name: _fitting(found, name, plan, chosen.name) for name in names})


def criterion_of(criterion: str | ScoreFunction) -> Criterion:
    """The criterion of a word, or around a function; raises `PlanError` for an unknown word."""
    if not isinstance(criterion, str):
        return Criterion(getattr(criterion, "__name__", "of your own"), criterion)
    try:
        return CRITERIA[choices.CRITERIA.check(criterion)]
    except ValueError:
        known = ", ".join(choices.CRITERIA)
        hint = nearest(criterion, CRITERIA, 1)
        raise PlanError(f"criterion {criterion!r} is not known{hint}; choose from {known}") from None


def _found(criterion: Criterion, model: TimmModule, batches: Batches, seed: int, names: tuple[str, ...]) -> Found:
    """What the criterion says; parts without a last layer, which it cannot observe, score themselves."""
    own = [name for name in names if PARTS[name].score is not None]
    asked = tuple(name for name in names if name not in own)
    found = dict(criterion(model, batches, seed, asked)) if asked else {}
    for name in own:
        found.setdefault(name, PARTS[name].score(model))  # type: ignore[misc]
    return found


def _check_units(model: TimmModule, plan: SlimPlan, name: str) -> None:
    part = PARTS[name]
    for view, block in zip(attention_blocks(model), plan.blocks, strict=True):
        if not block.of(name).total:
            raise ModelError(
                f"{view.name}: its {part.branch or 'block'} is none whose {part.units} slimvit can remove; "
                f"{part.why_not(view) or 'it has none'}; cut {labels(everywhere())} alone (--parts "
                f"{','.join(everywhere())})"
            )


def _fitting(found: Found, name: str, plan: SlimPlan, criterion: str) -> tuple[PartScores, ...]:
    """The scores of a part, checked against what the model has."""
    if name not in found:
        raise PlanError(f"criterion {criterion} gives no scores of {name}, only of {', '.join(found) or 'nothing'}")
    if len(found[name]) != len(plan.blocks):
        raise PlanError(
            f"criterion {criterion} scores {name} of {len(found[name])} blocks, but the model has {len(plan.blocks)}"
        )
    scores = tuple(_part_scores(values) for values in found[name])
    for block, part_scores in zip(plan.blocks, scores, strict=True):
        units, given = len(block.of(name).kept), part_scores.alone
        if len(given) != units:
            raise PlanError(
                f"criterion {criterion} gives {len(given)} scores of {name} in {block.name}, which has {units} "
                f"{PARTS[name].units}; give one number a unit"
            )
        if any(map(math.isnan, given)):
            raise PlanError(f"criterion {criterion} gives {block.name} a score of {name} that is not a number")
    return scores


def _part_scores(values: Any) -> PartScores:
    return values if isinstance(values, PartScores) else fixed(values)
