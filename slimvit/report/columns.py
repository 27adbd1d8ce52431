"""The figures of a stage, and the columns of every table: what each is called and how it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slimvit.report.record import Stage

NOT_MEASURED = "-"
"""In every table for people; null in JSON, an empty field in CSV."""

LEGEND = {
    "FLOPs (G)": "FLOPs (G): 1 multiply-add = 1, one image, layer norms included",
    "top-1": "top-1, top-5: per cent of the images",
    "agreement": "agreement: per cent of the images predicted as the {reference} model predicts them",
    "feature error": "feature error: squared distance to the features of the {reference} model before the "
    "classifier, over their variance",
    "feature cosine": "feature cosine: mean cosine similarity to the features of the {reference} model",
    "change": "change: top-1 points against the {reference} model",
    "time (s)": "time (s): what the stage took",
}
"""Column -> what it says; a column that is left out of the table is left out of the legend."""

Figures = dict[str, float | None]
"""Name -> figure in the units of report.json; None where it was not measured."""


@dataclass(frozen=True)
class Column:
    """How one figure is written: divided by ``unit``, in ``style``."""

    name: str
    key: str
    """Its name in :data:`Figures`."""
    style: str
    unit: float = 1
    in_terminal: bool = True

    def text(self, value: float | None) -> str:
        return NOT_MEASURED if value is None else format(value / self.unit, self.style)


def figures_of(stage: Stage, reference: Stage) -> Figures:
    """What was measured of a stage, and its change against ``reference``.

    The feature cosine is left out beside a top-1: it would crowd the table (report.json always has it).
    """
    found: Figures = stage.model_dump(exclude={"stage", "macs_by_part", "loss"})
    found["change"] = difference(stage.top1, reference.top1)
    if reference.top1 is not None:
        found["feature_cosine"] = None
    return found


def difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def neurons_gone(stages: Sequence[Stage]) -> bool:
    """Whether a stage has fewer neurons than the first: only then do tables speak of them."""
    first = stages[0].neurons
    return first is not None and any(s.neurons is not None and s.neurons < first for s in stages)


NEURONS = Column("neurons", "neurons", ",.0f")
SIZE = (
    Column("heads", "heads", ".0f"),
    NEURONS,
    Column("params (M)", "params", ".2f", 1e6),
    Column("FLOPs (G)", "macs", ".3f", 1e9),
)
ACCURACY = (
    Column("top-1", "top1", ".1f"),
    Column("top-5", "top5", ".1f"),
    Column("agreement", "agreement", ".1f"),
    Column("feature error", "feature_error", ".3f"),
    Column("feature cosine", "feature_cosine", ".4f"),
    Column("change", "change", "+.1f"),
)
COLUMNS = (
    *SIZE,
    *ACCURACY,
    Column("latency (ms)", "latency_ms", ".2f", in_terminal=False),
    Column("images/s", "throughput", ".0f", in_terminal=False),
    Column("time (s)", "seconds", ".1f"),
)
"""Of the table of one run, stage by stage."""
