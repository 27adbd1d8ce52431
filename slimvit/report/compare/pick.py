"""`--pick`: the cheapest point above an accuracy, or the most accurate point below a cost."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slimvit.models.parts.registry import PARTS
from slimvit.report.columns import METRICS
from slimvit.report.compare.rows import ComparisonRow
from slimvit.report.compare.series import accuracy_key
from slimvit.utils.errors import StoreError

KEEPS = {"top1": "change", "top5": "change_top5", "agreement": "agreement"}
"""Accuracy -> key of the figure with a lower bound: change in points for top1 and top5, agreement in per cent."""
ROUNDING = 1e-9


def costs() -> dict[str, str]:
    """Return cost -> key of the figure with an upper bound, as a fraction of the original's cost."""
    words = ("macs", "params", *(part.units for part in PARTS.values()))
    return {word: f"{word}_share" for word in words} | {"latency": "latency_ms_share"}


class PickError(ValueError):
    """An invalid `--pick`; the message names the allowed ones."""


@dataclass(frozen=True)
class PickRule:
    """A parsed `--pick`."""

    text: str
    metric: str
    bound: float

    @property
    def key(self) -> str:
        """Key of the bounded figure."""
        return (KEEPS | costs())[self.metric]

    @property
    def goal(self) -> str:
        """The criterion among the points that meet the bound."""
        return "fewest FLOPs" if self.metric in KEEPS else "most accurate"

    def distance(self, row: ComparisonRow) -> float:
        """Return the distance of a row from the bound; 0 if it meets the bound up to rounding."""
        missing = (self.bound - row.stats[self.key].mean) * (1 if self.metric in KEEPS else -1)
        return missing if missing > ROUNDING else 0.0


@dataclass(frozen=True)
class Pick:
    """The point that a rule chose."""

    rule: PickRule
    row: ComparisonRow


def parse_pick(text: str) -> PickRule:
    """Parse a rule such as `top1 >= -1.0` or `macs <= 0.6`.

    Raises:
        PickError: The text is no such rule.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*", text)
    if match is None:
        raise PickError(f"{text!r} is not METRIC >= NUMBER or METRIC <= NUMBER; {_allowed()}")
    metric, sign, bound = match[1], match[2], float(match[3])
    if sign != (">=" if metric in KEEPS else "<=") or metric not in KEEPS | costs():
        raise PickError(f"{text!r}: no such bound; {_allowed()}")
    if metric in costs() and not 0 < bound <= 1:
        raise PickError(f"{text!r}: {match[3]} is no fraction; {_allowed()}")
    return PickRule(" ".join([metric, sign, match[3]]), metric, bound)


def _allowed() -> str:
    return (
        f"give {', '.join(KEEPS)} with >= (top1 and top5 in points of change against the original, agreement in per "
        f"cent), or {', '.join(costs())} with <= and a fraction of the original's, above 0 and at most 1"
    )


def pick(rule: PickRule, rows: Sequence[ComparisonRow]) -> Pick:
    """Return the point that a rule chooses.

    Raises:
        StoreError: No point meets the bound; the message names the nearest one.
    """
    points = [row for row in rows if row.kind == "point"]
    measured = [row for row in points if rule.key in row.stats]
    if not measured:
        raise StoreError(
            f"--pick {rule.text!r}: no point has its {rule.metric} beside its original's; {_instead(rule)}"
        )
    met = [row for row in measured if rule.distance(row) == 0]
    if not met:
        nearest = min(measured, key=rule.distance)
        value, sign = nearest.stats[rule.key].mean, "+" if rule.key.startswith("change") else ""
        raise StoreError(
            f"--pick {rule.text!r}: none of {len(measured)} points meets it; the nearest is {nearest.name} with "
            f"{rule.metric} {value:{sign}.3g}; give a bound that it meets"
        )
    return Pick(rule, min(met, key=_cheapest if rule.metric in KEEPS else _accuracy(accuracy_key(met))))


def _instead(rule: PickRule) -> str:
    return "time them with slimvit bench first" if rule.metric == "latency" else "give another metric"


def _cheapest(row: ComparisonRow) -> tuple[float, float]:
    macs, top1 = row.value("macs"), row.value("top1")
    return (math.inf if macs is None else macs, -(top1 or 0.0))


def _accuracy(key: str | None) -> Callable[[ComparisonRow], tuple[float, float]]:
    """Sort key: the most accurate point first, the cheaper one among equals."""

    def order(row: ComparisonRow) -> tuple[float, float]:
        value = None if key is None else row.value(key)
        worse = math.inf if key is None or value is None else -value if METRICS[key].higher_is_better else value
        return (worse, row.value("macs") or 0.0)

    return order
