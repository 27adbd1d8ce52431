"""What to keep: heads and MLP neurons of every block, by original id. Decided first, cut later; readable and editable
as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from slimvit.utils.errors import PlanError
from slimvit.utils.files import Unreadable, read_json
from slimvit.utils.ranges import from_ranges, to_ranges

FORMAT_VERSION = 2
"""Format 1 knew heads alone."""
MOST_NEURONS = 1 << 20
"""In one block of a plan file: more than any MLP has."""


@dataclass(frozen=True)
class BlockPlan:
    """One block: the heads and neurons it had in the original model, and which of them (by original id) it keeps."""

    name: str
    heads: int
    kept_heads: tuple[int, ...]
    stage: int = 0
    neurons: int = 0
    """Hidden neurons of the MLP; 0 where the plan says nothing about it, and it stays as it is."""
    kept_neurons: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for what, kept, number in (
            ("head", self.kept_heads, self.heads),
            ("neuron", self.kept_neurons, self.neurons),
        ):
            wrong = [i for i in kept if not 0 <= i < number]
            if wrong:
                raise PlanError(
                    f"{self.name}: the plan keeps {what} {wrong[0]}, but the block has {what}s 0-{number - 1}; "
                    f"edit kept_{what}s of that block"
                )
            if list(kept) != sorted(set(kept)):
                shown = list(kept) if what == "head" else to_ranges(kept)
                raise PlanError(f"{self.name}: kept_{what}s is {shown}, but {what} ids must rise and none may repeat")

    @property
    def removed_heads(self) -> tuple[int, ...]:
        return tuple(h for h in range(self.heads) if h not in self.kept_heads)

    def to_json(self) -> dict[str, Any]:
        found = {"block": self.name, "stage": self.stage, "heads": self.heads, "kept_heads": list(self.kept_heads)}
        return found | ({"neurons": self.neurons, "kept_neurons": to_ranges(self.kept_neurons)} if self.neurons else {})


@dataclass(frozen=True)
class SlimPlan:
    """The kept heads and neurons of every block of one model, in forward order."""

    blocks: tuple[BlockPlan, ...]
    model: str = ""

    @property
    def total(self) -> int:
        """Heads of the original model."""
        return sum(b.heads for b in self.blocks)

    @property
    def kept(self) -> int:
        return sum(len(b.kept_heads) for b in self.blocks)

    @property
    def removed(self) -> int:
        return self.total - self.kept

    @property
    def neurons(self) -> int:
        """Hidden neurons of the original model's MLPs, as far as the plan speaks of them."""
        return sum(b.neurons for b in self.blocks)

    @property
    def kept_neurons(self) -> int:
        return sum(len(b.kept_neurons) for b in self.blocks)

    def same_size(self, other: SlimPlan) -> bool:
        """Whether both keep as much of everything."""
        return (self.kept, self.kept_neurons) == (other.kept, other.kept_neurons)

    def keeping(
        self, heads: Iterable[Sequence[int]] | None = None, neurons: Iterable[Sequence[int]] | None = None
    ) -> SlimPlan:
        """The same blocks with other kept heads, other kept neurons or both: one sequence of ids a block."""
        blocks = zip(self.blocks, self._chosen(heads, "kept_heads"), self._chosen(neurons, "kept_neurons"), strict=True)
        return SlimPlan(tuple(replace(b, kept_heads=h, kept_neurons=n) for b, h, n in blocks), self.model)

    def _chosen(self, kept: Iterable[Sequence[int]] | None, name: str) -> list[tuple[int, ...]]:
        if kept is None:
            return [getattr(b, name) for b in self.blocks]
        chosen = [tuple(sorted(k)) for k in kept]
        if len(chosen) != len(self.blocks):
            raise PlanError(f"the plan names {len(chosen)} blocks, but the model has {len(self.blocks)}")
        return chosen

    def on(self, current: SlimPlan) -> SlimPlan:
        """The same plan, with the neurons that a model now has where this one says nothing about them.

        Raises :class:`PlanError` unless this plan can be cut out of a model that now keeps ``current``.
        """
        self.check_against(current)
        pairs = zip(self.blocks, current.blocks, strict=True)
        blocks = (
            b if b.neurons else replace(b, neurons=now.neurons, kept_neurons=now.kept_neurons) for b, now in pairs
        )
        return SlimPlan(tuple(blocks), current.model)

    def check_against(self, current: SlimPlan) -> None:
        """Raise :class:`PlanError` unless this plan can be cut out of a model that now keeps ``current``."""
        if [b.name for b in self.blocks] != [b.name for b in current.blocks]:
            raise PlanError(
                f"the plan has {len(self.blocks)} blocks ({self.blocks[0].name if self.blocks else 'none'}, ...), "
                f"but the model has {len(current.blocks)} ({current.blocks[0].name}, ...): it was made for another "
                "model; make one for this model with --dry-run --out"
            )
        for mine, now in zip(self.blocks, current.blocks, strict=True):
            _check_part(mine.name, "head", (mine.heads, mine.kept_heads), (now.heads, now.kept_heads))
            if mine.neurons:
                theirs = (now.neurons, now.kept_neurons)
                _check_part(mine.name, "neuron", (mine.neurons, mine.kept_neurons), theirs)

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "blocks": [b.to_json() for b in self.blocks],
        }

    @classmethod
    def from_json(cls, data: Any, source: str = "plan") -> SlimPlan:
        """Read what :meth:`to_json` wrote; every defect is named with its place."""
        if not isinstance(data, dict) or not isinstance(data.get("blocks"), list):
            raise PlanError(f'{source}: expected an object with a list "blocks", as --dry-run --out writes it')
        version = data.get("format_version")
        if version not in (1, FORMAT_VERSION):
            raise PlanError(f"{source}: format_version is {version!r}, this slimvit reads 1 and {FORMAT_VERSION}")
        blocks = []
        for i, entry in enumerate(data["blocks"]):
            try:
                blocks.append(_block(entry, f"{source}: blocks[{i}]"))
            except _Misfit as error:
                raise PlanError(f"{source}: {error}") from None
        return cls(tuple(blocks), str(data.get("model", "")))

    @classmethod
    def read(cls, path: Path) -> SlimPlan:
        try:
            data = read_json(path)
        except FileNotFoundError:
            raise PlanError(f"{path}: no such plan file; write one with --dry-run --out DIR") from None
        except Unreadable as error:
            raise PlanError(f"{path}: not a readable plan: {error}") from None
        return cls.from_json(data, str(path))

    def write(self, path: Path) -> None:
        """One block a line, so that a person can edit it."""
        head = {k: v for k, v in self.to_json().items() if k != "blocks"}
        lines = ",\n".join("    " + json.dumps(b) for b in self.to_json()["blocks"])
        path.write_text(json.dumps(head)[:-1] + ', "blocks": [\n' + lines + "\n]}\n")


def _block(entry: Any, where: str) -> BlockPlan:
    """One block as :meth:`BlockPlan.to_json` gives it; what is of the wrong kind is named by ``where`` it stands."""
    if not isinstance(entry, dict):
        raise PlanError(f"{where}: expected an object, found {type(entry).__name__}")
    name, stage = entry.get("block"), entry.get("stage", 0)
    heads, kept = entry.get("heads"), entry.get("kept_heads")
    neurons, ranges = entry.get("neurons", 0), entry.get("kept_neurons", "")
    if not isinstance(name, str):
        raise PlanError(f"{where}.block: expected a block's name, found {name!r}")
    if not _is_count(stage):
        raise PlanError(f"{where}.stage: expected a whole number of at least 0, found {stage!r}")
    if not _is_count(heads) or heads == 0:
        raise PlanError(f"{where}.heads: expected a whole number of at least 1, found {heads!r}")
    if not isinstance(kept, list) or not all(_is_count(h) for h in kept):
        raise PlanError(f"{where}.kept_heads: expected a list of head ids, found {kept!r}")
    if not _is_count(neurons) or neurons > MOST_NEURONS:
        raise PlanError(f"{where}.neurons: expected a whole number of 0 to {MOST_NEURONS}, found {neurons!r}")
    kept_neurons = from_ranges(ranges, neurons)
    if kept_neurons is None:
        told = f"expected ids of 0-{neurons - 1} by range, like 0-7,16-31" if neurons else "the block names no neurons"
        raise PlanError(f"{where}.kept_neurons: {told}, found {ranges!r}")
    try:
        return BlockPlan(name, heads, tuple(kept), stage, neurons, kept_neurons)
    except PlanError as error:
        raise _Misfit(str(error)) from None


class _Misfit(PlanError):
    """A block that names itself in what it says."""


def _check_part(name: str, what: str, mine: tuple[int, tuple[int, ...]], now: tuple[int, tuple[int, ...]]) -> None:
    """Number of original ids and those kept, in the plan and in the model."""
    if mine[0] != now[0]:
        raise PlanError(f"{name}: the plan is for {mine[0]} {what}s, but the model's block has {now[0]}")
    there = set(now[1])
    gone = [i for i in mine[1] if i not in there]
    if gone:
        left = list(now[1]) if what == "head" else to_ranges(now[1]) or "none"
        raise PlanError(
            f"{name}: the plan keeps {what} {gone[0]}, which was removed earlier; {what}s still there: {left}"
        )


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
