"""Columns of tables: key, heading, format and legend of every figure, and the registry of accuracy figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slimvit.models.parts.base import Part
from slimvit.models.parts.registry import PARTS
from slimvit.report.record import Stage
from slimvit.utils.plugins import load_plugins

if TYPE_CHECKING:
    from slimvit.measure.accuracy import Outputs

NOT_MEASURED = "-"
"""Cell of a missing figure in text tables; null in JSON, an empty field in CSV."""

Figures = dict[str, float | None]
"""Figures by key, in the units of report.json; None for one that was not measured."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """The column of one figure."""

    key: str
    """The figure's name in `Figures`, report.json and CSV."""
    header: str
    format: str
    """Format specification, such as `.1f`."""
    unit: float = 1
    """Divisor of the figure."""
    legend: str = ""
    """Line of the legend; `{reference}` stands for the name of the original model."""
    in_terminal: bool = True
    """Whether terminal tables have room for it."""
    fixed: bool = False
    """Whether plan or recipe determine the figure; a spread of 0 over seeds is not shown then."""

    def text(self, value: float | None) -> str:
        """Return the figure as shown in tables."""
        return NOT_MEASURED if value is None else format(value / self.unit, self.format)


@dataclass(frozen=True, kw_only=True)
class Metric(Column):
    """An accuracy figure of `slimvit.measure.accuracy`."""

    axis: str = ""
    """Axis label in pictures; empty takes the heading."""
    higher_is_better: bool = True
    against_original: bool = False
    """Whether it compares a model with its original; meaningless for an original with random weights."""
    only_without_top1: bool = False
    """Whether tables leave it out if top-1 was measured, to stay narrow."""

    @property
    def label(self) -> str:
        """Axis label in pictures."""
        return self.axis or self.header


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(
            key="top1",
            header="top-1",
            format=".1f",
            axis="top-1 (%)",
            legend="top-1, top-5: per cent of the images",
        ),
        Metric(key="top5", header="top-5", format=".1f", axis="top-5 (%)"),
        Metric(
            key="agreement",
            header="agreement",
            format=".1f",
            axis="same prediction as the original (%)",
            legend="agreement: per cent of the images predicted as the {reference} model predicts them",
            against_original=True,
        ),
        Metric(
            key="feature_error",
            header="feature error",
            format=".3f",
            legend="feature error: squared distance to the features of the {reference} model before the classifier, "
            "over their variance",
            higher_is_better=False,
            against_original=True,
        ),
        Metric(
            key="feature_cosine",
            header="feature cosine",
            format=".4f",
            legend="feature cosine: mean cosine similarity to the features of the {reference} model",
            against_original=True,
            only_without_top1=True,
        ),
    )
}
"""Accuracy figures by key, in the order of tables."""


def register_metric(
    metric: Metric, function: Callable[[Outputs, Outputs | None], float | None] | None = None
) -> Metric:
    """Add an accuracy figure to every measurement, table, picture and file.

    Args:
        metric: Key, heading, format and legend of the figure.
        function: (outputs of a model, outputs of its original for the same images or None) -> the figure, or None if it
            cannot be measured. Not needed for a figure that `slimvit.measure.accuracy` computes.
    """
    if function is not None:
        from slimvit.measure.accuracy import FIGURES

        FIGURES[metric.key] = function
    METRICS[metric.key] = metric
    return metric


PARAMS = Column(key="params", header="params (M)", format=".2f", unit=1e6, fixed=True)
MACS = Column(
    key="macs",
    header="FLOPs (G)",
    format=".3f",
    unit=1e9,
    fixed=True,
    legend="FLOPs (G): 1 multiply-add = 1, one image, layer norms included",
)
CHANGE = Column(
    key="change",
    header="change",
    format="+.1f",
    legend="change: top-1 points against the {reference} model",
)
LATENCY = Column(key="latency_ms", header="latency (ms)", format=".2f")
THROUGHPUT = Column(key="throughput", header="images/s", format=".0f", in_terminal=False)
SECONDS = Column(key="seconds", header="time (s)", format=".1f", legend="time (s): duration of the stage")


def units_column(part: Part) -> Column:
    """Return the column of a part's units."""
    return Column(key=part.units, header=part.units, format=",.0f", fixed=True, legend=part.legend)


def size_and_accuracy(parts: Sequence[Part]) -> list[Column]:
    """Return the columns that all tables share, with the units of `parts`."""
    load_plugins()
    return [*map(units_column, parts), PARAMS, MACS, *METRICS.values(), CHANGE]


def parts_shown(is_cut: Callable[[Part], bool]) -> list[Part]:
    """Return the parts with a column in a table: the first part, and every other part that was cut."""
    first, *others = PARTS.values()
    return [first, *filter(is_cut, others)]


def parts_of_stages(stages: Sequence[Stage]) -> list[Part]:
    """Return the parts with a column in a table of stages."""
    return parts_shown(lambda part: _is_cut(part.units, stages))


def _is_cut(units: str, stages: Sequence[Stage]) -> bool:
    counts = [stage.figure(units) for stage in stages]
    first = counts[0]
    return first is not None and any(count is not None and count < first for count in counts)


def figures_of(stage: Stage, reference: Stage) -> Figures:
    """Return the figures of a stage that tables show, and its change against `reference`."""
    figures = stage.figures() | {"change": difference(stage.figure("top1"), reference.figure("top1"))}
    if reference.figure("top1") is not None:
        figures |= {metric.key: None for metric in METRICS.values() if metric.only_without_top1}
    return figures


def difference(after: float | None, before: float | None) -> float | None:
    """Return `after - before`, or None if one was not measured."""
    return None if after is None or before is None else after - before


def legend_of(columns: Sequence[Column], reference: str) -> list[str]:
    """Return the legend's lines for the columns of a table.

    Args:
        columns: The columns shown.
        reference: Name of the original model.
    """
    return [column.legend.replace("{reference}", reference) for column in columns if column.legend]
