"""What one block keeps: for every part the units it had in the original model, and which of them stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from slimvit.models.parts.base import Part
from slimvit.models.parts.registry import PARTS, part_of, part_with_units
from slimvit.utils.errors import PlanError, nearest
from slimvit.utils.plugins import load_plugins

MOST_UNITS = 1 << 20
"""In one block of a plan file: more than any part has."""
KEPT, REMOVED = "kept_", "removed_"


@dataclass(frozen=True)
class Units:
    """The units of one part of one block."""

    total: int = 0
    """In the original model."""
    kept: tuple[int, ...] = ()
    """Those that stay, by original id, rising."""

    @property
    def removed(self) -> tuple[int, ...]:
        """Those that are gone, by original id."""
        kept = set(self.kept)
        return tuple(i for i in range(self.total) if i not in kept)

    @classmethod
    def all(cls, total: int) -> Units:
        """Nothing is gone."""
        return cls(total, tuple(range(total)))


class ByPart(Mapping[str, Units]):
    """Units by the name of their part: a dict that cannot be changed, and can be hashed."""

    def __init__(self, units: Mapping[str, Units]) -> None:
        self._units = {part: found for part, found in units.items() if found.total}

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
    """One block: the units it had in the original model, and those it keeps, by part.

    What the words of a part say can be read as attributes: `block.heads` (how many there were), `block.kept_heads`
    and `block.removed_heads` (ids), and the same with `neurons`.
    """

    name: str
    stage: int = 0
    units: Mapping[str, Units] = field(default_factory=dict)
    """A part that is left out stays as it is."""

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
        """What is said of a part by the word for its units, with `kept_` or `removed_` before it or nothing."""
        what = next((prefix for prefix in (KEPT, REMOVED) if word.startswith(prefix)), "")
        part = part_with_units(word.removeprefix(what))
        if part is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {word!r}")
        units = self.of(part.name)
        return {KEPT: units.kept, REMOVED: units.removed}[what] if what else units.total

    def of(self, part: str) -> Units:
        """The units of a part; none at all where the plan says nothing of it."""
        return self.units.get(part, Units())

    def keeping(self, kept: Mapping[str, Sequence[int]]) -> BlockPlan:
        """The same block with other kept ids for the parts in `kept`."""
        changed = {part: Units(self.of(part).total, tuple(sorted(ids))) for part, ids in kept.items()}
        for part, units in changed.items():
            if units.kept and not units.total:
                raise PlanError(f"{self.name}: has no {part_of(part).units} that could be kept or removed")
        return BlockPlan(self.name, self.stage, {**self.units, **changed})

    def with_those_of(self, other: BlockPlan) -> BlockPlan:
        """The same block, with the units of `other` where this plan says nothing."""
        return BlockPlan(self.name, self.stage, {**other.units, **self.units})

    def check_against(self, now: BlockPlan) -> None:
        """Raise `PlanError` unless this can be cut out of a block that keeps what `now` says."""
        for name, mine in self.units.items():
            part, theirs = part_of(name), now.of(name)
            if mine.total != theirs.total:
                raise PlanError(
                    f"{self.name}: the plan is for {mine.total} {part.units}, but the model's block has {theirs.total}"
                )
            there = set(theirs.kept)
            if gone := [i for i in mine.kept if i not in there]:
                raise PlanError(
                    f"{self.name}: the plan keeps {part.unit} {gone[0]}, which was removed earlier; {part.units} still "
                    f"there: {part.written(theirs.kept) or 'none'}"
                )

    def may_come_from(self, other: BlockPlan) -> bool:
        """Whether cutting a block that keeps what `other` says can lead to this one."""
        names = {*self.units, *other.units}
        pairs = [(self.of(name), other.of(name)) for name in names]
        return all(mine.total == theirs.total and {*theirs.kept} >= {*mine.kept} for mine, theirs in pairs)

    def __repr__(self) -> str:
        return f"BlockPlan({self.name}: {self.words()})"

    def words(self) -> str:
        """`3 of 6 heads, 144 of 288 neurons`."""
        told = (f"{len(u.kept):,} of {u.total:,} {PARTS[name].units}" for name, u in self.units.items())
        return ", ".join(told)

    def to_json(self, parts: Sequence[Part]) -> dict[str, Any]:
        """The block as it stands in a plan file that knows `parts`."""
        found: dict[str, Any] = {"block": self.name, "stage": self.stage}
        for part in parts:
            units = self.of(part.name)
            if units.total:
                found |= {part.units: units.total, KEPT + part.units: part.written(units.kept)}
        return found

    @classmethod
    def from_json(cls, entry: Any, where: str) -> BlockPlan:
        """Read what `to_json` gave; what is of the wrong kind is named by `where` it stands."""
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
    """The units of a part, as the entry of a block in a plan file has them."""
    total = entry.get(part.units, None if part.everywhere else 0)
    if part.everywhere and (not _is_count(total) or total == 0):
        raise PlanError(f"{where}.{part.units}: expected a whole number of at least 1, found {total!r}")
    if not _is_count(total) or total > MOST_UNITS:
        raise PlanError(f"{where}.{part.units}: expected a whole number of 0 to {MOST_UNITS}, found {total!r}")
    key = KEPT + part.units
    value = entry.get(key, None if part.everywhere else part.written(()))
    kept = part.read(value, total)
    if kept is None or (kept and not total):
        raise PlanError(f"{where}.{key}: {part.expected(total)}, found {value!r}")
    return Units(total, kept)


def _check_known(entry: dict[str, Any], where: str) -> None:
    """Raise `PlanError` for kept units of a part that nobody knows: leaving it out would give another model."""
    if not _strangers(entry):
        return
    load_plugins()
    for key in _strangers(entry):
        known = [KEPT + part.units for part in PARTS.values()]
        raise PlanError(
            f"{where}.{key}: no part has units of that name{nearest(key, known, 1)}; known: {', '.join(known)}; "
            "another part comes with the package that adds it"
        )


def _strangers(entry: dict[str, Any]) -> list[str]:
    known = {KEPT + part.units for part in PARTS.values()}
    return [key for key in entry if isinstance(key, str) and key.startswith(KEPT) and key not in known]


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
