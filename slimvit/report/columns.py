"""The columns of every table: what each is called, where its figure comes from, how it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from slimvit.report.record import Stage

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


@dataclass(frozen=True)
class Column:
    """How one figure of a stage is found and written. ``value`` gets the stage and the one it is compared with."""

    name: str
    value: Callable[[Stage, Stage], float | None]
    style: str
    in_terminal: bool = True


def _over(count: int | None, unit: float) -> float | None:
    return None if count is None else count / unit


def _change(stage: Stage, reference: Stage) -> float | None:
    if stage.top1 is None or reference.top1 is None:
        return None
    return stage.top1 - reference.top1


def _cosine(stage: Stage, reference: Stage) -> float | None:
    """Only where there is no top-1 to go by; beside one it would crowd the table (report.json always has it)."""
    return stage.feature_cosine if reference.top1 is None else None


COLUMNS = (
    Column("heads", lambda s, _: s.heads, ".0f"),
    Column("params (M)", lambda s, _: _over(s.params, 1e6), ".2f"),
    Column("FLOPs (G)", lambda s, _: _over(s.macs, 1e9), ".3f"),
    Column("top-1", lambda s, _: s.top1, ".1f"),
    Column("top-5", lambda s, _: s.top5, ".1f"),
    Column("agreement", lambda s, _: s.agreement, ".1f"),
    Column("feature error", lambda s, _: s.feature_error, ".3f"),
    Column("feature cosine", _cosine, ".4f"),
    Column("change", _change, "+.1f"),
    Column("latency (ms)", lambda s, _: s.latency_ms, ".2f", in_terminal=False),
    Column("images/s", lambda s, _: s.throughput, ".0f", in_terminal=False),
    Column("time (s)", lambda s, _: s.seconds, ".1f"),
)
