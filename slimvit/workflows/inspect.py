"""What a model is made of: blocks, heads and neurons by original id, parameters and MACs by part; what one head and one
group of neurons cost; and with images how much each part matters."""

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


def inspect_model(section: ModelSection) -> dict[str, Any]:
    """Figures of the model of a section. Pretrained weights are not fetched: only shapes matter here."""
    section = pinned_section(section)
    shapes_only = section.weights is None and saved_folder(section.name) is None
    return block_rows(open_model(section.model_copy(update={"pretrained": False}) if shapes_only else section))


def inspect_with_data(recipe: Recipe, options: Options) -> dict[str, Any]:
    """The same, and how much the parts of every block matter to the recipe's calibration images."""
    with seeded(recipe.seed):
        model: TimmModule = open_model(recipe.model).to(resolve_device(options.device))
    images = draw(open_data(recipe.data, recipe.seed).train, recipe.prune.calibration_images, recipe.seed)
    loader = eval_loader(images, preprocessing_of(model), recipe.data.batch_size, options.workers)
    parts = [name for name in PARTS if all(name in b.units for b in plan_of(model).blocks)]
    with worker_deaths(options.workers):
        scores = score_parts(model, loader, CRITERION, recipe.seed, parts)
    found = block_rows(model) | {"scored": {"criterion": CRITERION, "images": len(images)}}
    for i, (block, alone) in enumerate(zip(found["blocks"], scores.table(), strict=True)):
        block["matters"] = {part: _prefixes(scores.of(part)[i]) if part in parts else None for part in PARTS}
        block["unit_scores"] = {everywhere()[0]: alone}
    return found


def _prefixes(scores: PartScores) -> dict[str, float | None]:
    """What the loss pays for all units of a part, and for the cheaper half of them; None where there is nothing."""
    half = len(scores.costs) // 2
    counts = {"all": len(scores.costs), "half": half}
    return {what: sum(scores.costs[:count]) if count else None for what, count in counts.items()}


def block_rows(model: TimmModule) -> dict[str, Any]:
    """Everything that shapes alone tell."""
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
        "unit_steps": {name: _group(part) for name, part in PARTS.items()},
        "blocks": [
            _block(b, view) | {"macs": counts}
            for b, view, counts in zip(plan.blocks, attention_blocks(model), macs.by_block, strict=True)
        ],
    }


def _block(plan: BlockPlan, view: AttentionBlock) -> dict[str, Any]:
    found: dict[str, Any] = {"block": plan.name, "stage": plan.stage}
    for name, part in PARTS.items():
        units = plan.of(name)
        found |= {part.units: units.total, f"kept_{part.units}": part.written(units.kept)}
    costs = {n: _unit_costs(part, view) if plan.of(n).kept else None for n, part in PARTS.items()}
    return found | {"params": count_params(view.block), "unit_costs": costs}


def _group(part: Part) -> int:
    """Units that go together."""
    return limits_of()[part.name].group


def _unit_costs(part: Part, view: AttentionBlock) -> dict[str, int]:
    """Of as many units as go together."""
    return {"macs": _group(part) * part.macs(view).unit, "params": _group(part) * part.params(view).unit}
