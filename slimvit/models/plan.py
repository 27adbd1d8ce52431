"""The pruning plan of a model: the kept units of every part of every block, by original id.

Plans are decided first and cut later. As JSON files they can be read and edited.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimvit.models.block_plan import REMOVED, BlockPlan
from slimvit.models.parts.base import KEPT, Part
from slimvit.models.parts.registry import PARTS, part_with_units
from slimvit.utils.errors import PlanError, nearest
from slimvit.utils.files import write_whole
from slimvit.utils.reading import read_errors, read_json

FORMATS = (1, 2, 3)
"""Format 1 holds heads, format 2 heads and neurons, format 3 any part."""
WRITTEN = 2
"""The format of plans that cut heads and neurons only."""


@dataclass(frozen=True, repr=False)
class SlimPlan:
    """The kept units of every block of one model, in forward order.

    The word for the units of a part makes three attributes: `plan.heads` (their number in the original model),
    `plan.kept_heads` and `plan.removed_heads` (numbers of kept and removed ones); likewise with `neurons`.
    """

    blocks: tuple[BlockPlan, ...]
    model: str = ""

    def __getattr__(self, word: str) -> int:
        """The attributes of a part: its word for units, alone or after `kept_` or `removed_`."""
        prefix = next((p for p in (KEPT, REMOVED) if word.startswith(p)), "")
        part = part_with_units(word.removeprefix(prefix))
        if part is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {word!r}")
        total, kept = self.total_of(part.name), self.kept_of(part.name)
        return {KEPT: kept, REMOVED: total - kept}[prefix] if prefix else total

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts in the plan."""
        return tuple(name for name in PARTS if any(name in b.units for b in self.blocks))

    def total_of(self, part: str) -> int:
        """Return the number of a part's units in the original model; 0 for a part that the plan leaves out."""
        return sum(b.of(part).total for b in self.blocks)

    def kept_of(self, part: str) -> int:
        """Return the number of a part's kept units."""
        return sum(len(b.of(part).kept) for b in self.blocks)

    def same_size(self, other: SlimPlan) -> bool:
        """Return whether both plans keep equally many units of every part."""
        return all(self.kept_of(name) == other.kept_of(name) for name in PARTS)

    def keeping(self, **kept: Iterable[Sequence[int]] | None) -> SlimPlan:
        """Return the plan with other kept units.

        Args:
            kept: Original ids block by block, under the word for the units: `keeping(heads=[[0, 2], [1]])`. None
                leaves the part as it is.

        Raises:
            PlanError: The word or an id is not known, or the number of blocks differs.
        """
        parts = {word: part_with_units(word) for word in kept}
        for word, part in parts.items():
            if part is None:
                known = [p.units for p in PARTS.values()]
                raise PlanError(f"no part has units called {word!r}{nearest(word, known)}; known: {', '.join(known)}")
        chosen = {part.name: kept[word] for word, part in parts.items() if part is not None}
        return self.keeping_parts({name: ids for name, ids in chosen.items() if ids is not None})

    def keeping_parts(self, kept: Mapping[str, Iterable[Sequence[int]]]) -> SlimPlan:
        """Return the plan with other kept units, by the names of the parts.

        Args:
            kept: Original ids block by block, by part.

        Raises:
            PlanError: The number of blocks differs, or an id is not known.
        """
        chosen = {part: list(ids) for part, ids in kept.items()}
        for ids in chosen.values():
            if len(ids) != len(self.blocks):
                raise PlanError(f"the plan names {len(ids)} blocks, but the model has {len(self.blocks)}")
        blocks = (b.keeping({part: ids[i] for part, ids in chosen.items()}) for i, b in enumerate(self.blocks))
        return SlimPlan(tuple(blocks), self.model)

    def on(self, current: SlimPlan) -> SlimPlan:
        """Return the plan, completed by the parts that only the model's present plan has.

        Raises:
            PlanError: A model with the plan `current` cannot be cut to this plan.
        """
        self.check_against(current)
        pairs = zip(self.blocks, current.blocks, strict=True)
        return SlimPlan(tuple(block.with_those_of(present) for block, present in pairs), current.model)

    def check_against(self, current: SlimPlan) -> None:
        """Raise `PlanError` unless a model with the plan `current` can be cut to this plan."""
        if [b.name for b in self.blocks] != [b.name for b in current.blocks]:
            first, theirs = (plan.blocks[0].name if plan.blocks else "none" for plan in (self, current))
            raise PlanError(
                f"the plan has {len(self.blocks)} blocks ({first}, ...), "
                f"but the model has {len(current.blocks)} ({theirs}, ...): it was made for another "
                "model; make one for this model with --dry-run --out"
            )
        for block, present in zip(self.blocks, current.blocks, strict=True):
            block.check_against(present)

    def edited_keys(self) -> list[str]:
        """Return the keys of a plan file to edit: the heads, and every other part that is cut."""
        return [PARTS[name].keys()[1] for name in self.parts if PARTS[name].everywhere or self._cuts(PARTS[name])]

    def kept_words(self) -> str:
        """Return the numbers of kept units in words: `18 heads and 864 neurons`."""
        return " and ".join(f"{self.kept_of(name):,} {PARTS[name].units}" for name in self.parts)

    def removed_words(self, before: SlimPlan) -> str:
        """Return the numbers of units removed since the plan `before` in words: `18 of 36 heads (50.0%)`."""
        counts = [(before.kept_of(name), self.kept_of(name), part.units) for name, part in PARTS.items()]
        removed = [
            f"{old - new:,} of {old:,} {units} ({(old - new) / old:.1%})" for old, new, units in counts if old > new
        ]
        return " and ".join(removed) or "nothing"

    def __repr__(self) -> str:
        """A table of kept units, block by block."""
        totals = (PARTS[name].count_words(self.kept_of(name), self.total_of(name)) for name in self.parts)
        width = max((len(b.name) for b in self.blocks), default=0)
        lines = [f"SlimPlan of {self.model or 'a model'}: keeps {' and '.join(totals) or 'everything'}"]
        return "\n".join(lines + [f"  {b.name:<{width}}  {b.words()}" for b in self.blocks])

    def to_json(self) -> dict[str, Any]:
        """Return plain data. Parts that are new in format 3 are included only where they are cut."""
        parts = [part for part in PARTS.values() if part.plan_format <= WRITTEN or self._cuts(part)]
        return {
            "format_version": max(WRITTEN, *(part.plan_format for part in parts)),
            "model": self.model,
            "blocks": [b.to_json(parts) for b in self.blocks],
        }

    @property
    def is_cut(self) -> bool:
        """Whether any unit of the original model is gone."""
        return any(self._cuts(PARTS[name]) for name in self.parts)

    def _cuts(self, part: Part) -> bool:
        return self.kept_of(part.name) < self.total_of(part.name)

    @classmethod
    def from_json(cls, data: Any, source: str = "plan") -> SlimPlan:
        """Read the result of `to_json`.

        Args:
            data: Parsed JSON.
            source: Name of the file, for errors.

        Raises:
            PlanError: The data has a defect; the message names its place.
        """
        if not isinstance(data, dict) or not isinstance(data.get("blocks"), list):
            raise PlanError(f'{source}: expected an object with a list "blocks", as --dry-run --out writes it')
        version = data.get("format_version")
        if version not in FORMATS:
            *most, last = FORMATS
            raise PlanError(
                f"{source}: format_version is {version!r}, this slimvit reads {', '.join(map(str, most))} and {last}"
            )
        blocks = [_block(entry, source, i) for i, entry in enumerate(data["blocks"])]
        return cls(tuple(blocks), str(data.get("model", "")))

    @classmethod
    def read(cls, path: Path) -> SlimPlan:
        """Read a plan file; raises `PlanError` where it is missing or damaged."""
        missing = f"{path}: no such plan file; write one with --dry-run --out DIR"
        with read_errors(PlanError, missing=missing, unreadable=f"{path}: not a readable plan"):
            data = read_json(path)
        return cls.from_json(data, str(path))

    def write(self, path: Path) -> None:
        """Write a file with one line per block, for editing."""
        data = self.to_json()
        head = {k: v for k, v in data.items() if k != "blocks"}
        lines = ",\n".join("    " + json.dumps(b) for b in data["blocks"])
        write_whole(path, json.dumps(head)[:-1] + ', "blocks": [\n' + lines + "\n]}\n")


def _block(entry: Any, source: str, i: int) -> BlockPlan:
    """Read one block. Errors name the block for wrong ids, and the place in the file for anything else."""
    place = f"{source}: blocks[{i}]"
    try:
        return BlockPlan.from_json(entry, place)
    except PlanError as error:
        raise error if str(error).startswith(place) else PlanError(f"{source}: {error}") from None
