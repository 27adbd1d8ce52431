"""The blocks of a model: kept heads and neurons by original id, parameters, MACs, and scores of the units."""

from __future__ import annotations

from typing import Any

from slimvit.config.options import Options
from slimvit.config.recipe import ModelSection, Recipe
from slimvit.data.loaders import eval_loader, worker_deaths
from slimvit.data.preprocessing import preprocessing_of
from slimvit.data.sources import open_data
from slimvit.data.subsets import draw
from slimvit.io.load import pinned_section, saved_folder
from slimvit.io.open import open_model
from slimvit.measure.flops.count import count_macs
from slimvit.measure.flops.parts import count_params, params_by_part
from slimvit.models.base import AttentionBlock, TimmModule
from slimvit.models.block_plan import BlockPlan
from slimvit.models.insert_dense import dense_mix, mixes_in
from slimvit.models.parts.base import Part
from slimvit.models.parts.registry import PARTS, everywhere, limits_of
from slimvit.models.registry import attention_blocks, model_name, plan_of
from slimvit.prune.criteria.registry import score_parts
from slimvit.prune.criteria.scores import PartScores
from slimvit.utils.device import resolve_device
from slimvit.utils.seeds import seeded

CRITERION = "residual"
"""The criterion of the scores."""


def inspect_model(section: ModelSection) -> dict[str, Any]:
    """Figures of the model of a section that follow from its shapes; timm's pretrained weights are not fetched."""
    section = pinned_section(section)
    shapes_only = section.weights is None and saved_folder(section.name) is None
    return block_rows(open_model(section.model_copy(update={"pretrained": False}) if shapes_only else section))


def inspect_with_data(recipe: Recipe, options: Options) -> dict[str, Any]:
    """The figures of `inspect_model`, and the scores of every block on the recipe's calibration images."""
    with seeded(recipe.seed):
        model: TimmModule = open_model(recipe.model).to(resolve_device(options.device))
    images = draw(open_data(recipe.data, recipe.seed).train, recipe.prune.calibration_images, recipe.seed)
    loader = eval_loader(images, preprocessing_of(model), recipe.data.batch_size, options.workers)
    parts = [name for name in PARTS if all(name in b.units for b in plan_of(model).blocks)]
    with worker_deaths(options.workers):
        scores = score_parts(model, loader, CRITERION, recipe.seed, parts)
    inspection = block_rows(model) | {"scored": {"criterion": CRITERION, "images": len(images)}}
    for i, (block, alone) in enumerate(zip(inspection["blocks"], scores.table(), strict=True)):
        block["matters"] = {part: _importance(scores.of(part)[i]) if part in parts else None for part in PARTS}
        block["unit_scores"] = {everywhere()[0]: alone}
    return inspection


def _importance(scores: PartScores) -> dict[str, float | None]:
    """Rise of the loss without all units of a part and without the cheaper half; None for no units."""
    half = len(scores.costs) // 2
    counts = {"all": len(scores.costs), "half": half}
    return {share: sum(scores.costs[:count]) if count else None for share, count in counts.items()}


def block_rows(model: TimmModule) -> dict[str, Any]:
    """The figures of a model and of its blocks that follow from shapes alone."""
    plan, macs = plan_of(model), count_macs(model)
    return {
        "model": model_name(model),
        "num_classes": model.num_classes,
        **{part.units: [plan.total_of(name), plan.kept_of(name)] for name, part in PARTS.items()},
        "dense": dense_mix(model),
        "mixes": mixes_in(model),
        "params": count_params(model),
        "params_by_part": params_by_part(model),
        "macs": macs.total,
        "macs_by_part": macs.by_part,
        "macs_closed_form": macs.closed_form,
        "macs_torch": macs.torch_counter,
        "note": macs.disagreement(),
        "unit_steps": {name: _group(part) for name, part in PARTS.items() if not part.counts_removed},
        "blocks": [
            _block(b, view) | {"macs": counts}
            for b, view, counts in zip(plan.blocks, attention_blocks(model), macs.by_block, strict=True)
        ],
    }


def _block(plan: BlockPlan, view: AttentionBlock) -> dict[str, Any]:
    row: dict[str, Any] = {"block": plan.name, "stage": plan.stage}
    for name, part in PARTS.items():
        units = plan.of(name)
        row |= {part.units: units.total, f"kept_{part.units}": part.written(units.kept)}
    priced = {name: part for name, part in PARTS.items() if not part.counts_removed}
    costs = {n: _unit_costs(part, view) if plan.of(n).kept else None for n, part in priced.items()}
    return row | {"params": count_params(view.block), "unit_costs": costs}


def _group(part: Part) -> int:
    """Number of units that are removed together."""
    return limits_of()[part.name].group


def _unit_costs(part: Part, view: AttentionBlock) -> dict[str, int]:
    """MACs and parameters of one group of units."""
    units = _group(part) * (1 if part.within is None else part.within.count(view))
    return {"macs": units * part.macs(view).unit, "params": units * part.params(view).unit}
