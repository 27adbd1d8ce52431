"""Scores of a model's units, and their JSON file in the cache."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimvit.models.parts.registry import everywhere, part_of
from slimvit.models.plan import SlimPlan
from slimvit.utils.errors import PlanError
from slimvit.utils.files import write_whole
from slimvit.utils.reading import Unreadable, read_json


@dataclass(frozen=True)
class PartScores:
    """Scores of one part of one block. Units are numbered by position among the present units."""

    order: tuple[int, ...]
    """All units in the order of removal."""
    costs: tuple[float, ...]
    """Rise of the loss at each removal in that order, on top of the earlier ones. Those of tokens go on, since tokens
    that earlier blocks merge count too."""
    alone: tuple[float, ...]
    """Rise of the loss when each unit is removed alone, by position."""


def fixed(values: Any) -> PartScores:
    """Return scores from one number per unit, independent of earlier removals.

    Args:
        values: A tensor, an array or a sequence [units].
    """
    numbers = [float(v) for v in (values.tolist() if hasattr(values, "tolist") else values)]
    order = sorted(range(len(numbers)), key=lambda i: (numbers[i], i))
    return PartScores(tuple(order), tuple(numbers[i] for i in order), tuple(numbers))


@dataclass(frozen=True, repr=False)
class Scores:
    """Scores of one model by part, with the model's plan at that time."""

    criterion: str
    plan: SlimPlan
    parts: Mapping[str, tuple[PartScores, ...]]
    """By part, block by block."""

    def of(self, part: str) -> tuple[PartScores, ...]:
        """Return the scores of a part, block by block; raises `PlanError` for a part that was not scored."""
        if part not in self.parts:
            raise PlanError(f"{part} was not scored, only {', '.join(self.parts)}; name it in the parts to score")
        return self.parts[part]

    def table(self, part: str | None = None) -> list[list[float | None]]:
        """Return the rise of the loss when each unit is removed alone, as rows [blocks][original units].

        The entry of a unit that was removed earlier is None.

        Args:
            part: Name of the part; by default the heads.
        """
        part = part or everywhere()[0]
        rows: list[list[float | None]] = []
        for block, scores in zip(self.plan.blocks, self.of(part), strict=True):
            units = block.of(part)
            costs = dict(zip(units.kept, scores.alone, strict=True))
            rows.append([costs.get(unit) for unit in range(units.total)])
        return rows

    def __repr__(self) -> str:
        """The range of the scores in every block, one line each."""
        width = max((len(b.name) for b in self.plan.blocks), default=0)
        names = " and ".join(part_of(name).units for name in self.parts)
        lines = [f"Scores of {self.plan.model or 'a model'} by {self.criterion}: {names}, each alone"]
        for i, block in enumerate(self.plan.blocks):
            ranges = (f"{len(s[i].alone)} {part_of(name).units} {_range(s[i].alone)}" for name, s in self.parts.items())
            lines.append(f"  {block.name:<{width}}  {', '.join(ranges)}")
        return "\n".join(lines)


def _range(values: tuple[float, ...]) -> str:
    return f"({min(values):.3g} to {max(values):.3g})" if values else ""


def write_scores(scores: Scores, path: Path) -> None:
    """Write scores as JSON; numbers are read back bit for bit."""
    parts = {part: [asdict(s) for s in blocks] for part, blocks in scores.parts.items()}
    write_whole(path, json.dumps({"criterion": scores.criterion, **parts}))


def read_scores(path: Path, plan: SlimPlan) -> Scores:
    """Read a file that `write_scores` wrote.

    Args:
        path: The file.
        plan: The plan of the scored model.

    Raises:
        Unreadable: The file holds no scores of this plan.
    """
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(criterion := data.pop("criterion", None), str):
        raise Unreadable("it holds no scores")
    return Scores(criterion, plan, {part: _read(part, blocks, plan) for part, blocks in data.items() if blocks})


def _read(part: str, blocks: Any, plan: SlimPlan) -> tuple[PartScores, ...]:
    try:
        found = tuple(PartScores(**{name: tuple(values) for name, values in block.items()}) for block in blocks)
        counts = [len(block.of(part).kept) for block in plan.blocks]
        is_curve = bool(part_of(part).counts_removed)
        fits = len(found) == len(counts) and all(_fits(s, n, is_curve) for s, n in zip(found, counts, strict=True))
    except (AttributeError, KeyError, TypeError):
        fits = False
    if not fits:
        raise Unreadable(f"its scores of {part} are not of this model")
    return found


def _fits(scores: PartScores, count: int, is_curve: bool) -> bool:
    """Whether the scores are those of `count` units, each a number; a curve has costs of any number of units."""
    numbers = (*scores.costs, *scores.alone)
    return (
        sorted(scores.order) == list(range(count))
        and (is_curve or len(scores.costs) == count)
        and len(scores.alone) == count
        and all(type(number) in (int, float) and not math.isnan(number) for number in numbers)
    )
