"""Scores of the units of a model; and in a file, so that several runs can share them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimvit.models.parts.registry import everywhere, part_of
from slimvit.models.plan import SlimPlan
from slimvit.utils.errors import PlanError


@dataclass(frozen=True)
class PartScores:
    """One part of one block. Units are named by position among those the block has now."""

    order: tuple[int, ...]
    """All units, in the order in which they go."""
    costs: tuple[float, ...]
    """What the removal of each costs, in that order: after those before it are gone."""
    alone: tuple[float, ...]
    """What each unit, by position, would cost if it were the only one to go."""


def fixed(values: Any) -> PartScores:
    """Scores from a number a unit, whatever else is removed: a tensor, an array or a sequence [units]."""
    numbers = [float(v) for v in (values.tolist() if hasattr(values, "tolist") else values)]
    order = sorted(range(len(numbers)), key=lambda i: (numbers[i], i))
    return PartScores(tuple(order), tuple(numbers[i] for i in order), tuple(numbers))


@dataclass(frozen=True, repr=False)
class Scores:
    """Scores of the blocks of one model by part, and what the model kept when they were computed."""

    criterion: str
    plan: SlimPlan
    parts: Mapping[str, tuple[PartScores, ...]]
    """One entry a block."""

    def of(self, part: str) -> tuple[PartScores, ...]:
        """The scores of a part, block by block; raises `PlanError` where it was not scored."""
        if part not in self.parts:
            raise PlanError(f"{part} was not scored, only {', '.join(self.parts)}; name it in the parts to score")
        return self.parts[part]

    def table(self, part: str | None = None) -> list[list[float | None]]:
        """[blocks][original units]: what removing that unit alone would cost; None for units already gone.

        Args:
            part: Its name; by default the part that every block has, the heads.
        """
        part = part or everywhere()[0]
        rows: list[list[float | None]] = []
        for block, scores in zip(self.plan.blocks, self.of(part), strict=True):
            units = block.of(part)
            costs = dict(zip(units.kept, scores.alone, strict=True))
            rows.append([costs.get(unit) for unit in range(units.total)])
        return rows

    def __repr__(self) -> str:
        """The range of the scores, block by block."""
        width = max((len(b.name) for b in self.plan.blocks), default=0)
        names = " and ".join(part_of(name).units for name in self.parts)
        lines = [f"Scores of {self.plan.model or 'a model'} by {self.criterion}: {names}, each alone"]
        for i, block in enumerate(self.plan.blocks):
            told = (f"{len(s[i].alone)} {part_of(name).units} {_range(s[i].alone)}" for name, s in self.parts.items())
            lines.append(f"  {block.name:<{width}}  {', '.join(told)}")
        return "\n".join(lines)


def _range(values: tuple[float, ...]) -> str:
    return f"({min(values):.3g} to {max(values):.3g})" if values else ""


def write_scores(scores: Scores, path: Path) -> None:
    """As JSON, which brings numbers back bit for bit."""
    parts = {part: [asdict(s) for s in found] for part, found in scores.parts.items()}
    path.write_text(json.dumps({"criterion": scores.criterion, **parts}))


def read_scores(path: Path, plan: SlimPlan) -> Scores:
    """What `write_scores` wrote, for a model that keeps what `plan` does."""
    found = json.loads(path.read_text())
    criterion = found.pop("criterion")
    return Scores(criterion, plan, {part: _read(blocks) for part, blocks in found.items() if blocks})


def _read(blocks: list[dict[str, Any]]) -> tuple[PartScores, ...]:
    return tuple(PartScores(**{name: tuple(values) for name, values in block.items()}) for block in blocks)
