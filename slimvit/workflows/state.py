"""The context of a run, which stays the same, and its state, which every stage replaces.

`start.py` makes the first state; the stages in `run.py`, `pruning.py` and `evaluate.py` make the ones after it.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.metadata import version

import torch
from torch import Tensor, nn

from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.data.images import Images
from slimvit.data.loaders import eval_loader
from slimvit.data.preprocessing import Preprocessing
from slimvit.data.sources import Data
from slimvit.data.subsets import draw
from slimvit.measure.accuracy import Outputs, outputs_of
from slimvit.measure.flops.count import MacCount, count_macs
from slimvit.models.base import TimmModule
from slimvit.models.insert_dense import mixes_in
from slimvit.models.parts.registry import everywhere
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of
from slimvit.prune.costs.budget import Target
from slimvit.report.record import Report, Stage
from slimvit.train.state import History
from slimvit.utils.distributed import Engine

PACKAGES = ("slimvit", "torch", "torchvision", "timm", "torch-pruning", "fvcore")
"""Packages whose versions a report lists."""

ScoreTables = dict[str, list[list[float | None]]]
"""Score of every unit of the original by part, [blocks][units]; None for a unit removed in an earlier round."""


@dataclass(frozen=True)
class RunContext:
    """The parts of a run that no stage changes.

    Attributes:
        recipe: What to compute.
        options: How to carry it out.
        engine: Device and processes.
        data: Training and validation images.
        preprocessing: Input size and normalisation of the model.
        mac_counts: MACs of the architectures counted so far, by plan and number of dense mixes.
    """

    recipe: Recipe
    options: Options
    engine: Engine
    data: Data
    preprocessing: Preprocessing
    mac_counts: dict[tuple[SlimPlan, int], MacCount] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The device of the run."""
        return self.engine.device

    def outputs(self, model: nn.Module, images: Images) -> Outputs:
        """The model's outputs for images; each process computes its share."""
        return outputs_of(model, self.engine.split(self.in_order(images)), self.device, self.engine.gather)

    def macs_of(self, model: nn.Module) -> MacCount:
        """MACs of the model, counted once per architecture: refit and training keep it."""
        architecture = (plan_of(model), mixes_in(model))
        if architecture not in self.mac_counts:
            self.mac_counts[architecture] = count_macs(model)
        return self.mac_counts[architecture]

    def in_order(self, images: Images) -> Iterable[tuple[Tensor, Tensor]]:
        """Evaluation batches (images [B, C, H, W], labels [B]) in the order of the images."""
        return eval_loader(images, self.preprocessing, self.recipe.data.batch_size, self.options.workers)

    def calibration(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Batches of the calibration images, the same ones in the same order at every call."""
        return self.in_order(draw(self.data.train, self.recipe.prune.calibration_images, self.recipe.seed))


@dataclass(frozen=True)
class RunState:
    """The results of a run so far.

    Attributes:
        context: Recipe, options, engine and data.
        model: The current network.
        original: The network before the cut, adapted if the recipe asks for it.
        teacher: The teacher that the recipe names; None where `original` is the teacher.
        target: The target of the recipe, if its budget is one.
        plan: The units to keep, once planned.
        scores: Score of every unit by part; None where nothing was scored.
        reference: Outputs of `original` for the validation images.
        stages: One row of the report per finished stage.
        notes: Remarks for the report.
        histories: One row per epoch, by training.
        planning_seconds: Seconds of scoring and planning, reported as part of the cut.
        adapt_seconds: Seconds of training the original for the classes of the data.
        adapted: Whether the run trained `original`.
        best: Weights of the best fine-tuning epoch on the validation images; None where that is the last one.
        interrupted: The interrupted training to resume, `adapt` or `finetune`; None once it is resumed.
    """

    context: RunContext
    model: TimmModule
    original: TimmModule
    teacher: TimmModule | None = None
    target: Target | None = None
    plan: SlimPlan | None = None
    scores: ScoreTables | None = None
    reference: Outputs | None = None
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    histories: dict[str, History] = field(default_factory=dict)
    planning_seconds: float = 0.0
    adapt_seconds: float = 0.0
    adapted: bool = False
    best: dict[str, Tensor] | None = None
    interrupted: str | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        return self.context.recipe

    def with_note(self, note: str) -> RunState:
        """The state with one more remark for the report."""
        return replace(self, notes=[*self.notes, note])

    @property
    def report(self) -> Report:
        """The report of the stages so far."""
        section, part = self.recipe.prune, everywhere()[0]  # `ratio` counts units of this part
        before, after = plan_of(self.original).kept_of(part), plan_of(self.model).kept_of(part)
        return Report(
            model=self.recipe.model.name,
            data=self.context.data.name,
            seed=self.recipe.seed,
            device=_device_name(self.context.device),
            versions={p: version(p) for p in PACKAGES} | {"python": platform.python_version()},
            images=len(self.context.data.val),
            input_size=list(self.context.preprocessing.input_size),
            calibration_images=min(section.calibration_images, len(self.context.data.train))
            if section.wanted
            else None,
            ratio_asked=section.ratio,
            ratio_reached=round((before - after) / before, 4) if section.wanted else None,
            notes=list(dict.fromkeys(self.notes)),
            stages=self.stages,
        )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
