"""One run as a table of many sees it: what it measured, by which recipe, beside which original. No torch, no pandas."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimvit.config.recipe import BUDGETS, Recipe
from slimvit.config.sweep import PublishedFigure
from slimvit.report.columns import Figures, difference, figures_of
from slimvit.report.record import Report, Stage
from slimvit.report.timing import Timing, setting_of

AGAINST_ORIGINAL = ("agreement", "feature_error", "feature_cosine")
ACCURACIES = ("top1", "top5", "loss", *AGAINST_ORIGINAL)
Setting = tuple[str, str, bool]
"""Device, precision, compiled: timings are compared under one of them only."""


@dataclass(frozen=True)
class Measurement:
    """A run folder that was read."""

    folder: Path
    shown: str
    """The folder as written files name it."""
    name: str
    """For people; alike for runs that differ in nothing but the seed, where a sweep named them."""
    model: str
    """What the first run of its line started from."""
    report: Report
    recipe: Recipe | None = None
    """None for a folder without one."""
    epochs: int | None = None
    """Of fine-tuning, those of the runs that it goes on from included."""
    input_size: tuple[int, ...] | None = None
    """Channels, height, width; None where it is not known."""
    sweep: str | None = None
    """The sweep it is a point of."""
    is_reference: bool = False
    timings: tuple[Timing, ...] = ()
    history: tuple[dict[str, Any], ...] = ()
    """Rows of history.csv of the fine-tuning: epoch, top1, agreement, loss where known."""
    pictures: dict[str, Path] = field(default_factory=dict)
    """Title -> file."""

    @property
    def trained_before(self) -> bool:
        """Whether the original is a network that somebody trained, and so one to be compared with."""
        section = None if self.recipe is None else self.recipe.model
        drawn = section is not None and not section.pretrained and section.weights is None
        return not drawn or (self.recipe is not None and self.recipe.adapt.epochs > 0)

    @property
    def original(self) -> Stage:
        """The network before the cut; the accuracy of random weights says nothing and is left out."""
        stage = self.report.reference
        return stage if self.trained_before else stage.model_copy(update=dict.fromkeys(ACCURACIES))

    @property
    def last(self) -> Stage:
        stage = self.report.last
        return stage if self.trained_before else stage.model_copy(update=dict.fromkeys(AGAINST_ORIGINAL))

    def figures(self, setting: Setting | None = None) -> Figures:
        """Of the final network, with its shares of the original's cost and its times under ``setting``."""
        before, after = self.original, self.last
        found = figures_of(after, before) | {"epochs": self.epochs, "change_top5": difference(after.top5, before.top5)}
        found |= {
            f"{key}_share": _share(getattr(after, key), getattr(before, key))
            for key in ("heads", "neurons", "params", "macs")
        }
        return found | _times(next((t for t in self.timings if setting_of(t) == setting), None)) | {"seconds": None}

    @property
    def data(self) -> str:
        size = None if self.input_size is None else "x".join(map(str, self.input_size))
        images = None if self.report.images is None else f"{self.report.images} images"
        return ", ".join(filter(None, (self.report.data or "unknown data", images, size)))

    def key(self, *, budget: bool) -> str:
        """The recipe but for its seed, and without ``budget`` but for how much it cuts; equal for equal runs."""
        if self.recipe is None:
            return str(self.folder)
        tree = self.recipe.model_dump(mode="json", exclude={"seed"})
        if not budget:
            tree["prune"] = {k: v for k, v in tree["prune"].items() if k not in BUDGETS}
        return json.dumps(tree, sort_keys=True)

    def command(self, folder: str | None = None) -> str:
        """What repeats the run; ``folder`` instead of where it lies."""
        return f"slimvit run {shlex.quote(f'{folder or self.folder}/recipe.yaml')} --out NEW"


@dataclass(frozen=True)
class CollectedRuns:
    """Everything that was asked to be put side by side."""

    measurements: tuple[Measurement, ...]
    claims: tuple[tuple[str, PublishedFigure], ...] = ()
    """With the sweep that each is from."""
    notes: tuple[str, ...] = ()


def _times(timing: Timing | None) -> Figures:
    """Beside the original's: a latency 0.8 times as long, a throughput 1.25 times as high."""
    if timing is None:
        return dict.fromkeys(("latency_ms", "throughput", "latency_ms_share", "throughput_share"))
    shares = {"latency_ms_share": _share(1.0, timing.latency_speedup), "throughput_share": timing.throughput_speedup}
    return {"latency_ms": timing.latency_ms, "throughput": timing.throughput} | shares


def _share(after: float | None, before: float | None) -> float | None:
    return after / before if after is not None and before else None
