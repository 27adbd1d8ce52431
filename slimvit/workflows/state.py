"""One run under way: what it was asked for, what it works on, what it measured so far."""

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
from slimvit.data.loaders import draw, eval_loader, preprocessing_of
from slimvit.data.sources import Data
from slimvit.measure.accuracy import Outputs, outputs_of
from slimvit.measure.flops.count import MacCount, count_macs
from slimvit.models.base import TimmModule
from slimvit.models.insert_dense import mixes_in
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of
from slimvit.report.record import Report, Stage
from slimvit.train.state import History
from slimvit.utils.distributed import Engine

PACKAGES = ("slimvit", "torch", "torchvision", "timm", "torch-pruning", "fvcore")


@dataclass
class RunState:
    """``model`` is the network as it is now, ``original`` the one before the cut, after any adapting."""

    recipe: Recipe
    options: Options
    engine: Engine
    data: Data
    model: TimmModule
    original: nn.Module
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    histories: dict[str, History] = field(default_factory=dict)
    scores: list[list[float | None]] | None = None
    """The score of every head, block by block, where heads were scored."""
    reference: Outputs | None = None
    """What the uncut network gives on the validation images."""
    spent: float = 0.0
    """Seconds that scoring and planning took; they count as the cut's."""
    adapting: float = 0.0
    """Seconds that training a classifier before the cut took."""
    teacher: nn.Module | None = None
    """What the recipe names to learn from, where that is not the uncut network."""
    adapted: bool = False
    best: dict[str, Tensor] | None = None
    """Weights of the fine-tuning's best epoch on the validation images, where that is not the last one."""
    counted: dict[tuple[SlimPlan, int], MacCount] = field(default_factory=dict)
    """Of every form that the network has had: what it keeps and how many mixes it has."""
    interrupted: str | None = None
    """The training (`adapt` or `finetune`) that an earlier process was stopped in, until it goes on."""

    @property
    def device(self) -> torch.device:
        return self.engine.device

    def outputs(self, model: nn.Module, images: Images) -> Outputs:
        """What a model gives for images, shared out among the processes."""
        return outputs_of(model, self.engine.shared(self.in_order(images)), self.device, self.engine.gather)

    def macs_of(self, model: nn.Module) -> MacCount:
        """Neither a refit nor training changes the form, so most stages share their counts."""
        form = (plan_of(model), mixes_in(model))
        if form not in self.counted:
            self.counted[form] = count_macs(model)
        return self.counted[form]

    def in_order(self, images: Images) -> Iterable[tuple[Tensor, Tensor]]:
        """Batches as evaluation sees them."""
        prep = preprocessing_of(self.model)
        return eval_loader(images, prep, self.recipe.data.batch_size, self.options.workers)

    def calibration(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Training images for scores and refit: the same ones, in the same order, every time."""
        return self.in_order(draw(self.data.train, self.recipe.prune.calibration_images, self.recipe.seed))

    @property
    def report(self) -> Report:
        section, before = self.recipe.prune, plan_of(self.original).kept
        return Report(
            model=self.recipe.model.name,
            data=self.data.name,
            seed=self.recipe.seed,
            device=_device_name(self.device),
            versions={p: version(p) for p in PACKAGES} | {"python": platform.python_version()},
            images=len(self.data.val),
            input_size=list(preprocessing_of(self.model).input_size),
            calibration_images=min(section.calibration_images, len(self.data.train)) if section.wanted else None,
            ratio_asked=section.ratio,
            ratio_reached=round((before - plan_of(self.model).kept) / before, 4) if section.wanted else None,
            notes=list(dict.fromkeys(self.notes)),
            stages=self.stages,
        )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
