"""One run of a comparison: its figures, recipe, original and timing setting. No torch, no pandas."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimvit.config.recipe import BUDGETS, Recipe
from slimvit.config.sweep import PublishedFigure
from slimvit.models.parts.registry import PARTS
from slimvit.report.columns import METRICS, Figures, difference, figures_of
from slimvit.report.record import Report, Stage
from slimvit.report.timing import Timing, setting_of

Setting = tuple[str, str, bool]
"""(Device, precision, compiled); only times in the same setting are compared."""


@dataclass(frozen=True)
class Measurement:
    """The content of a run folder."""

    folder: Path
    shown: str
    """Name of the folder in the files of a comparison."""
    name: str
    """Name of the run in tables and pictures, shared by the seeds of a sweep's point."""
    model: str
    """The pretrained model, also of a run that continues another one."""
    report: Report
    recipe: Recipe | None = None
    """None for a folder without recipe.yaml."""
    epochs: int | None = None
    """Epochs of fine-tuning, including those of earlier runs that it continues."""
    input_size: tuple[int, ...] | None = None
    """[channels, height, width]; None if unknown."""
    sweep: str | None = None
    """The sweep that the run is a point of."""
    is_reference: bool = False
    timings: tuple[Timing, ...] = ()
    history: tuple[dict[str, Any], ...] = ()
    """Rows of the fine-tuning in history.csv: `epoch`, and `top1`, `agreement` and `loss` if measured."""
    pictures: dict[str, Path] = field(default_factory=dict)
    """Title -> file."""

    @property
    def trained_before(self) -> bool:
        """Whether the original is a trained network."""
        section = None if self.recipe is None else self.recipe.model
        is_random = section is not None and not section.pretrained and section.weights is None
        return not is_random or (self.recipe is not None and self.recipe.adapt.epochs > 0)

    @property
    def original(self) -> Stage:
        """The network before the cut; without accuracy if its weights are random."""
        stage = self.report.reference
        return stage if self.trained_before else _without(stage, set(stage.accuracy))

    @property
    def last(self) -> Stage:
        """The final network; without comparisons with an original of random weights."""
        compared = {key for key, metric in METRICS.items() if metric.against_original}
        return self.report.last if self.trained_before else _without(self.report.last, compared)

    def figures(self, setting: Setting | None = None) -> Figures:
        """Return the figures of the final network, its costs relative to the original's, and its times in `setting`."""
        before, after = self.original, self.last
        top5 = difference(after.figure("top5"), before.figure("top5"))
        costs = [*(part.units for part in PARTS.values()), "params", "macs"]
        shares = {f"{key}_share": _share(after.figure(key), before.figure(key)) for key in costs}
        settings: Figures = {"epochs": self.epochs, "change_top5": top5, "seconds": None}
        timing = next((t for t in self.timings if setting_of(t) == setting), None)
        return figures_of(after, before) | settings | shares | _times(timing)

    @property
    def data(self) -> str:
        """Data set, number of images and input size, such as `digits, 540 images, 3x32x32`."""
        size = None if self.input_size is None else "x".join(map(str, self.input_size))
        images = None if self.report.images is None else f"{self.report.images} images"
        return ", ".join(filter(None, (self.report.data or "unknown data", images, size)))

    def key(self, *, budget: bool) -> str:
        """Return the recipe without its seed as text, to group runs by equal recipes.

        Args:
            budget: Whether the text includes the budget.
        """
        if self.recipe is None:
            return str(self.folder)
        tree = self.recipe.model_dump(mode="json", exclude={"seed"})
        if not budget:
            tree["prune"] = {k: v for k, v in tree["prune"].items() if k not in BUDGETS}
        return json.dumps(tree, sort_keys=True)

    def command(self, folder: str | None = None) -> str:
        """Return the command that repeats the run.

        Args:
            folder: Name of the run folder in the command. Default: its path.
        """
        return f"slimvit run {shlex.quote(f'{folder or self.folder}/recipe.yaml')} --out NEW"


@dataclass(frozen=True)
class CollectedRuns:
    """The runs to compare."""

    measurements: tuple[Measurement, ...]
    claims: tuple[tuple[str, PublishedFigure], ...] = ()
    """(Sweep, published figure in its file)."""
    notes: tuple[str, ...] = ()


def common_setting(measurements: Sequence[Measurement]) -> Setting | None:
    """Return the setting that most runs were timed in, the alphabetically first among equals; None without timings."""
    counts = Counter(s for m in measurements for s in {setting_of(t) for t in m.timings})
    return min(counts, key=lambda s: (-counts[s], s), default=None)


def setting_text(setting: Setting) -> str:
    """Return `a CPU, fp32, compiled`."""
    device, precision, compiled = setting
    return ", ".join([device, precision] + ["compiled"] * compiled)


def untimed(measurements: Sequence[Measurement], setting: Setting | None) -> int:
    """Return the number of runs without a latency in `setting`."""
    return sum(m.figures(setting)["latency_ms"] is None for m in measurements)


def notes_on_times(measurements: Sequence[Measurement], setting: Setting | None) -> list[str]:
    """Return a note on the settings whose times the table leaves out; empty if there are none."""
    others = sorted({setting_of(t) for m in measurements for t in m.timings} - {setting})
    return [f"times under other settings are left out: {'; '.join(map(setting_text, others))}"] * bool(others)


def _without(stage: Stage, keys: set[str]) -> Stage:
    return stage.model_copy(update=dict.fromkeys(keys & stage.accuracy.keys()))


def _times(timing: Timing | None) -> Figures:
    """Latency and throughput, and their ratios to the original's."""
    if timing is None:
        return dict.fromkeys(("latency_ms", "throughput", "latency_ms_share", "throughput_share"))
    shares = {"latency_ms_share": _share(1.0, timing.latency_speedup), "throughput_share": timing.throughput_speedup}
    return {"latency_ms": timing.latency_ms, "throughput": timing.throughput} | shares


def _share(after: float | None, before: float | None) -> float | None:
    return after / before if after is not None and before else None
