"""--pick: the cheapest point that keeps the accuracy, or the most accurate one that is cheap enough."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slimvit.report.compare.rows import ComparisonRow
from slimvit.report.compare.series import LOWER_IS_BETTER, accuracy_key
from slimvit.utils.errors import StoreError

KEEPS = {"top1": "change", "top5": "change_top5", "agreement": "agreement"}
"""Accuracy -> the figure that is bounded from below: points of change for top1 and top5, agreement in per cent."""
COSTS = {"macs": "macs_share", "params": "params_share", "heads": "heads_share", "latency": "latency_ms_share"}
"""Cost -> the figure that is bounded from above: a fraction of the original's."""
ROUNDING = 1e-9
ALLOWED = (
    f"give {', '.join(KEEPS)} with >= (top1 and top5 in points of change against the original, agreement in per cent), "
    f"or {', '.join(COSTS)} with <= and a fraction of the original's, above 0 and at most 1"
)


class PickError(ValueError):
    """An expression that means nothing here; the message says what is allowed."""


@dataclass(frozen=True)
class PickRule:
    """One --pick, understood."""

    text: str
    metric: str
    bound: float

    @property
    def key(self) -> str:
        return (KEEPS | COSTS)[self.metric]

    @property
    def goal(self) -> str:
        return "fewest FLOPs" if self.metric in KEEPS else "most accurate"

    def distance(self, row: ComparisonRow) -> float:
        """How far the row is from meeting the wish; 0 where it does, but for the last digits of a difference."""
        off = (self.bound - row.stats[self.key].mean) * (1 if self.metric in KEEPS else -1)
        return off if off > ROUNDING else 0.0


@dataclass(frozen=True)
class Pick:
    wish: PickRule
    row: ComparisonRow


def parse_pick(text: str) -> PickRule:
    """``top1 >= -1.0`` or ``macs <= 0.6``. Raises :class:`PickError`."""
    found = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*", text)
    if found is None:
        raise PickError(f"{text!r} is not METRIC >= NUMBER or METRIC <= NUMBER; {ALLOWED}")
    metric, sign, bound = found[1], found[2], float(found[3])
    if sign != (">=" if metric in KEEPS else "<=") or metric not in KEEPS | COSTS:
        raise PickError(f"{text!r}: no such bound; {ALLOWED}")
    if metric in COSTS and not 0 < bound <= 1:
        raise PickError(f"{text!r}: {found[3]} is no fraction; {ALLOWED}")
    return PickRule(" ".join([metric, sign, found[3]]), metric, bound)


def pick(wish: PickRule, rows: Sequence[ComparisonRow]) -> Pick:
    """The point to take. Raises :class:`StoreError` where none meets the wish, which names the nearest one."""
    points = [row for row in rows if row.kind == "point"]
    known = [row for row in points if wish.key in row.stats]
    if not known:
        raise StoreError(
            f"--pick {wish.text!r}: no point has its {wish.metric} beside its original's; {_instead(wish)}"
        )
    met = [row for row in known if wish.distance(row) == 0]
    if not met:
        nearest = min(known, key=wish.distance)
        value, sign = nearest.stats[wish.key].mean, "+" if wish.key.startswith("change") else ""
        raise StoreError(
            f"--pick {wish.text!r}: none of {len(known)} points meets it; the nearest is {nearest.name} with "
            f"{wish.metric} {value:{sign}.3g}; give a bound that it meets"
        )
    return Pick(wish, min(met, key=_cheapest if wish.metric in KEEPS else _accuracy(accuracy_key(met))))


def _instead(wish: PickRule) -> str:
    return "time them with slimvit bench first" if wish.metric == "latency" else "give another metric"


def _cheapest(row: ComparisonRow) -> tuple[float, float]:
    macs, top1 = row.value("macs"), row.value("top1")
    return (math.inf if macs is None else macs, -(top1 or 0.0))


def _accuracy(key: str | None) -> Callable[[ComparisonRow], tuple[float, float]]:
    """The order from the most accurate point, by ``key``, to the least; of equals the cheaper first."""

    def order(row: ComparisonRow) -> tuple[float, float]:
        value = None if key is None else row.value(key)
        worse = math.inf if value is None else value if key in LOWER_IS_BETTER else -value
        return (worse, row.value("macs") or 0.0)

    return order
