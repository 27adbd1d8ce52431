"""What to keep: the original head ids of every block. Decided first, cut later; readable and editable as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from slimvit.errors import PlanError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class BlockPlan:
    """One block: the heads it had in the original model, and which of them (by original id) it keeps."""

    name: str
    heads: int
    kept_heads: tuple[int, ...]
    stage: int = 0

    def __post_init__(self) -> None:
        wrong = [h for h in self.kept_heads if not 0 <= h < self.heads]
        if wrong:
            raise PlanError(
                f"{self.name}: the plan keeps head {wrong[0]}, but the block has heads 0-{self.heads - 1}; "
                "edit kept_heads of that block"
            )
        if list(self.kept_heads) != sorted(set(self.kept_heads)):
            raise PlanError(
                f"{self.name}: kept_heads is {list(self.kept_heads)}, but head ids must rise and none may repeat"
            )

    @property
    def removed_heads(self) -> tuple[int, ...]:
        return tuple(h for h in range(self.heads) if h not in self.kept_heads)


@dataclass(frozen=True)
class SlimPlan:
    """The kept heads of every block of one model, in forward order."""

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

    def keeping(self, kept_heads: Iterable[Sequence[int]]) -> SlimPlan:
        """The same blocks with other kept heads, one sequence a block."""
        chosen = [tuple(sorted(k)) for k in kept_heads]
        if len(chosen) != len(self.blocks):
            raise PlanError(f"the plan names {len(chosen)} blocks, but the model has {len(self.blocks)}")
        blocks = (BlockPlan(b.name, b.heads, k, b.stage) for b, k in zip(self.blocks, chosen, strict=True))
        return SlimPlan(tuple(blocks), self.model)

    def check_against(self, current: SlimPlan) -> None:
        """Raise :class:`PlanError` unless this plan can be cut out of a model that now keeps ``current``."""
        if [b.name for b in self.blocks] != [b.name for b in current.blocks]:
            raise PlanError(
                f"the plan has {len(self.blocks)} blocks ({self.blocks[0].name if self.blocks else 'none'}, ...), "
                f"but the model has {len(current.blocks)} ({current.blocks[0].name}, ...): it was made for another "
                "model; make one for this model with --dry-run --out"
            )
        for mine, now in zip(self.blocks, current.blocks, strict=True):
            if mine.heads != now.heads:
                raise PlanError(
                    f"{mine.name}: the plan is for {mine.heads} heads, but the model's block has {now.heads}"
                )
            gone = [h for h in mine.kept_heads if h not in now.kept_heads]
            if gone:
                raise PlanError(
                    f"{mine.name}: the plan keeps head {gone[0]}, which was removed earlier; "
                    f"heads still there: {list(now.kept_heads)}"
                )

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "blocks": [
                {"block": b.name, "stage": b.stage, "heads": b.heads, "kept_heads": list(b.kept_heads)}
                for b in self.blocks
            ],
        }

    @classmethod
    def from_json(cls, data: Any, source: str = "plan") -> SlimPlan:
        """Read what :meth:`to_json` wrote; every defect is named with its place."""
        if not isinstance(data, dict) or not isinstance(data.get("blocks"), list):
            raise PlanError(f'{source}: expected an object with a list "blocks", as --dry-run --out writes it')
        if data.get("format_version") != FORMAT_VERSION:
            raise PlanError(
                f"{source}: format_version is {data.get('format_version')!r}, this slimvit reads {FORMAT_VERSION}"
            )
        blocks = []
        for i, entry in enumerate(data["blocks"]):
            where = f"{source}: blocks[{i}]"
            if not isinstance(entry, dict):
                raise PlanError(f"{where}: expected an object, found {type(entry).__name__}")
            name, stage = entry.get("block"), entry.get("stage", 0)
            heads, kept = entry.get("heads"), entry.get("kept_heads")
            if not isinstance(name, str):
                raise PlanError(f"{where}.block: expected a block's name, found {name!r}")
            if not _is_count(stage):
                raise PlanError(f"{where}.stage: expected a whole number of at least 0, found {stage!r}")
            if not _is_count(heads) or heads == 0:
                raise PlanError(f"{where}.heads: expected a whole number of at least 1, found {heads!r}")
            if not isinstance(kept, list) or not all(_is_count(h) for h in kept):
                raise PlanError(f"{where}.kept_heads: expected a list of head ids, found {kept!r}")
            try:
                blocks.append(BlockPlan(name, heads, tuple(kept), stage))
            except PlanError as error:
                raise PlanError(f"{source}: {error}") from None
        return cls(tuple(blocks), str(data.get("model", "")))

    @classmethod
    def read(cls, path: Path) -> SlimPlan:
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError:
            raise PlanError(f"{path}: no such plan file; write one with --dry-run --out DIR") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise PlanError(f"{path}: not a readable plan: {error}") from None
        return cls.from_json(data, str(path))

    def write(self, path: Path) -> None:
        """One block a line, so that a person can edit it."""
        head = {k: v for k, v in self.to_json().items() if k != "blocks"}
        lines = ",\n".join("    " + json.dumps(b) for b in self.to_json()["blocks"])
        path.write_text(json.dumps(head)[:-1] + ', "blocks": [\n' + lines + "\n]}\n")


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
