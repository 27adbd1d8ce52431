"""The plan of one block: the units of every part in the original model, and the kept ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from slimvit.models.parts.base import KEPT, Part
from slimvit.models.parts.registry import PARTS, part_of, part_with_units
from slimvit.utils.errors import PlanError, nearest
from slimvit.utils.plugins import load_plugins

MOST_UNITS = 1 << 20
"""Largest number of units of a block that a plan file may hold."""
REMOVED = "removed_"


@dataclass(frozen=True)
class Units:
    """The units of one part of one block."""

    total: int = 0
    """Number of units in the original model."""
    kept: tuple[int, ...] = ()
    """Original ids of the kept units, in rising order."""

    @property
    def removed(self) -> tuple[int, ...]:
        """Original ids of the removed units."""
        kept = set(self.kept)
        return tuple(i for i in range(self.total) if i not in kept)

    @classmethod
    def all(cls, total: int) -> Units:
        """Return units of which none is removed."""
        return cls(total, tuple(range(total)))


class ByPart(Mapping[str, Units]):
    """Immutable, hashable mapping from the names of parts to units; parts without units are left out."""

    def __init__(self, units: Mapping[str, Units]) -> None:
        self._units = {name: of_part for name, of_part in units.items() if of_part.total}

    def __getitem__(self, part: str) -> Units:
        return self._units[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self._units)

    def __len__(self) -> int:
        return len(self._units)

    def __hash__(self) -> int:
        return hash(frozenset(self._units.items()))


@dataclass(frozen=True, repr=False)
class BlockPlan:
    """The plan of one block: by part, the units in the original model and the kept ones.

    The word for the units of a part makes three attributes: `block.heads` (their original number), `block.kept_heads`
    and `block.removed_heads` (ids); likewise with `neurons`.
    """

    name: str
    stage: int = 0
    units: Mapping[str, Units] = field(default_factory=dict)
    """Units by part; a part that is left out is not cut."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", ByPart(self.units))
        for name, units in self.units.items():
            part = part_of(name)
            if wrong := [i for i in units.kept if not 0 <= i < units.total]:
                raise PlanError(
                    f"{self.name}: the plan keeps {part.unit} {wrong[0]}, but the block has {part.units} "
                    f"0-{units.total - 1}; edit {KEPT}{part.units} of that block"
                )
            if list(units.kept) != sorted(set(units.kept)):
                raise PlanError(
                    f"{self.name}: {KEPT}{part.units} is {part.written(units.kept)}, but {part.unit} ids must rise "
                    "and none may repeat"
                )

    def __getattr__(self, word: str) -> Any:
        """The attributes of a part: its word for units, alone or after `kept_` or `removed_`."""
        prefix = next((p for p in (KEPT, REMOVED) if word.startswith(p)), "")
        part = part_with_units(word.removeprefix(prefix))
        if part is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {word!r}")
        units = self.of(part.name)
        return {KEPT: units.kept, REMOVED: units.removed}[prefix] if prefix else units.total

    def of(self, part: str) -> Units:
        """Return the units of a part; for a part that is left out, `Units()`."""
        return self.units.get(part, Units())

    def keeping(self, kept: Mapping[str, Sequence[int]]) -> BlockPlan:
        """Return the plan with other kept ids for the parts in `kept`."""
        ids = {part: range(len(kept[part])) if PARTS[part].counted else sorted(kept[part]) for part in kept}
        changed = {part: Units(self.of(part).total, tuple(ids[part])) for part in kept}
        for name in self.units:  # a part inside another one goes with its last unit
            outer = PARTS[name].within
            if outer is not None and outer.name in changed and not changed[outer.name].kept:
                changed[name] = Units(self.of(name).total, ())
        for part, units in changed.items():
            if units.kept and not units.total:
                raise PlanError(f"{self.name}: has no {part_of(part).units} that could be kept or removed")
        return BlockPlan(self.name, self.stage, {**self.units, **changed})

    def with_those_of(self, other: BlockPlan) -> BlockPlan:
        """Return the plan, completed by the parts that only `other` has."""
        return BlockPlan(self.name, self.stage, {**other.units, **self.units})

    def check_against(self, current: BlockPlan) -> None:
        """Raise `PlanError` unless a block with the plan `current` can be cut to this plan."""
        for name, units in self.units.items():
            part, present = part_of(name), current.of(name)
            if units.total != present.total:
                raise PlanError(
                    f"{self.name}: the plan is for {units.total} {part.units}, but the model's block has "
                    f"{present.total}"
                )
            left = set(present.kept)
            if gone := [i for i in units.kept if i not in left]:
                raise PlanError(
                    f"{self.name}: the plan keeps {part.unit} {gone[0]}, which was removed earlier; {part.units} still "
                    f"there: {part.written(present.kept) or 'none'}"
                )

    def may_come_from(self, other: BlockPlan) -> bool:
        """Return whether a block with the plan `other` can be cut to this plan."""
        names = {*self.units, *other.units}
        pairs = [(self.of(name), other.of(name)) for name in names]
        return all(new.total == old.total and {*old.kept} >= {*new.kept} for new, old in pairs)

    def __repr__(self) -> str:
        return f"BlockPlan({self.name}: {self.words()})"

    def words(self) -> str:
        """Return the counts in words: `3 of 6 heads, 144 of 288 neurons`."""
        counts = (PARTS[name].count_words(len(u.kept), u.total) for name, u in self.units.items())
        return ", ".join(counts)

    def to_json(self, parts: Sequence[Part]) -> dict[str, Any]:
        """Return the block's entry in a plan file, with the units of `parts`."""
        entry: dict[str, Any] = {"block": self.name, "stage": self.stage}
        for part in parts:
            units = self.of(part.name)
            if units.total:
                entry |= part.entry(units.total, units.kept)
        return entry

    @classmethod
    def from_json(cls, entry: Any, where: str) -> BlockPlan:
        """Read an entry of a plan file.

        Args:
            entry: The result of `to_json`.
            where: Place of the entry in the file, for errors.

        Raises:
            PlanError: The entry has a defect.
        """
        if not isinstance(entry, dict):
            raise PlanError(f"{where}: expected an object, found {type(entry).__name__}")
        name, stage = entry.get("block"), entry.get("stage", 0)
        if not isinstance(name, str):
            raise PlanError(f"{where}.block: expected a block's name, found {name!r}")
        if not _is_count(stage):
            raise PlanError(f"{where}.stage: expected a whole number of at least 0, found {stage!r}")
        _check_known(entry, where)
        return cls(name, stage, {part.name: _units(entry, part, where) for part in PARTS.values()})


def _units(entry: dict[str, Any], part: Part, where: str) -> Units:
    """The units of a part from the entry of a block."""
    total, value = part.of_entry(entry)
    if part.everywhere and (not _is_count(total) or total == 0):
        raise PlanError(f"{where}.{part.keys()[0]}: expected a whole number of at least 1, found {total!r}")
    if not _is_count(total) or total > MOST_UNITS:
        raise PlanError(f"{where}.{part.keys()[0]}: expected a whole number of 0 to {MOST_UNITS}, found {total!r}")
    kept = part.read(value, total)
    if kept is None or (kept and not total):
        raise PlanError(f"{where}.{part.keys()[1]}: {part.expected(total)}, found {value!r}")
    return Units(total, kept)


def _check_known(entry: dict[str, Any], where: str) -> None:
    """Raise `PlanError` for kept units of an unknown part, since without them the model would be another."""
    if not _unknown_keys(entry):
        return
    load_plugins()
    for key in _unknown_keys(entry):
        known = [part.keys()[1] for part in PARTS.values()]
        raise PlanError(
            f"{where}.{key}: no part has units of that name{nearest(key, known, 1)}; known: {', '.join(known)}; "
            "another part comes with the package that adds it"
        )


def _unknown_keys(entry: dict[str, Any]) -> list[str]:
    known = {part.keys()[1] for part in PARTS.values()}
    return [key for key in entry if isinstance(key, str) and key.startswith(KEPT) and key not in known]


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
