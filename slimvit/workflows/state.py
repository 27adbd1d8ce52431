"""A run under way: its context, which stays the same, and its state, which every stage replaces.

`start.py` makes the first state and `run.py` the ones after it. Other modules read the values they need and return
results.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class RunContext:
    """The parts of a run that no stage changes.

    Attributes:
        recipe: What to compute.
        options: How to carry it out.
        engine: Device and processes.
        data: Training and validation images.
        preprocessing: Input size and normalisation of the model.
        counted: MACs of every form that the network has had, by its plan and its number of mixes.
    """

    recipe: Recipe
    options: Options
    engine: Engine
    data: Data
    preprocessing: Preprocessing
    counted: dict[tuple[SlimPlan, int], MacCount] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self.engine.device

    def outputs(self, model: nn.Module, images: Images) -> Outputs:
        """The model's outputs for images, computed by all processes together."""
        return outputs_of(model, self.engine.split(self.in_order(images)), self.device, self.engine.gather)

    def macs_of(self, model: nn.Module) -> MacCount:
        """MACs of the model. Refit and training keep its form, so most stages share one count."""
        form = (plan_of(model), mixes_in(model))
        if form not in self.counted:
            self.counted[form] = count_macs(model)
        return self.counted[form]

    def in_order(self, images: Images) -> Iterable[tuple[Tensor, Tensor]]:
        """Batches (images [B, C, H, W], labels [B]) as evaluation sees them."""
        return eval_loader(images, self.preprocessing, self.recipe.data.batch_size, self.options.workers)

    def calibration(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Batches of training images for scores and refit: the same ones in the same order every time."""
        return self.in_order(draw(self.data.train, self.recipe.prune.calibration_images, self.recipe.seed))


@dataclass(frozen=True)
class RunState:
    """The results of a run so far.

    Attributes:
        context: Recipe, options, engine and data.
        model: The network as it is now.
        original: The network before the cut and after any adapting.
        teacher: The network that the recipe names to learn from, where that is not `original`.
        target: The budget in MACs, parameters, time or the like, with the table that its prices come from.
        plan: The units to keep, once that is decided.
        scores: The score of every head by block, where heads were scored.
        reference: Outputs of `original` for the validation images.
        stages: A row of the report for each stage.
        notes: Remarks for the report.
        histories: A row an epoch, by training.
        planning_seconds: Time of scoring and planning, which counts as the cut's.
        adapt_seconds: Time of training a classifier before the cut.
        adapted: Whether the run trained `original`.
        best: Weights of the fine-tuning's best epoch on the validation images, where that is not the last one.
        interrupted: The training (`adapt` or `finetune`) that an earlier process stopped in, until it is resumed.
    """

    context: RunContext
    model: TimmModule
    original: TimmModule
    teacher: TimmModule | None = None
    target: Target | None = None
    plan: SlimPlan | None = None
    scores: list[list[float | None]] | None = None
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
        """The recipe that is carried out."""
        return self.context.recipe

    @property
    def report(self) -> Report:
        """The run's record so far."""
        section, part = self.recipe.prune, everywhere()[0]  # the part that a ratio is of
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
