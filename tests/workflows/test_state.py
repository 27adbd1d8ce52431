"""The state of a run is made in start.py and replaced in run.py; every other workflow reads it or returns results."""

from __future__ import annotations

import ast
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slimvit.workflows import resume
from slimvit.workflows.state import RunContext, RunState

WORKFLOWS = Path(__file__).parents[2] / "slimvit" / "workflows"
FIELDS = {f.name for kind in (RunState, RunContext) for f in fields(kind)}
REPLACES, MAKES = {"run.py", "pruning.py", "evaluate.py"}, {"start.py"}


def writes(source: str) -> list[str]:
    """The ways in which a module writes to a state: assignments, methods that change it, `replace`, new states."""
    found = []
    for node in ast.walk(ast.parse(source)):
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
        targets += [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else []
        found += [f"assigns {ast.unparse(t)}" for t in targets if _of_a_state(_without_index(t))]
        if isinstance(node, ast.Call):
            name, first = ast.unparse(node.func), ast.unparse(node.args[0]) if node.args else ""
            found += ["replaces"] if name == "replace" and first in ("state", "context") else []
            found += ["makes"] if name in ("RunState", "RunContext") else []
            found += ["sets"] if name in ("setattr", "object.__setattr__") else []
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            changes = isinstance(node.func, ast.Attribute) and node.func.attr in ("append", "extend", "update", "clear")
            found += [f"changes {owner.attr}"] if changes and _of_a_state(owner) else []  # type: ignore[union-attr]
    return found


def _without_index(node: ast.AST) -> ast.AST:
    return node.value if isinstance(node, ast.Subscript) else node


def _of_a_state(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in FIELDS and "self" not in ast.unparse(node)


@pytest.mark.parametrize("file", sorted(WORKFLOWS.rglob("*.py")), ids=lambda file: file.name)
def test_only_stages_replace_the_state(file: Path) -> None:
    allowed = {"replaces"} if file.name in REPLACES else {"makes"} if file.name in MAKES else set()
    assert set(writes(file.read_text())) <= allowed
    if allowed:
        assert allowed <= set(writes(file.read_text()))


@pytest.mark.parametrize(
    "line",
    [
        "state.model = model",
        "state.notes += [note]",
        "state.histories['adapt'] = rows",
        "state.stages.append(stage)",
        "state = replace(state, model=model)",
        "setattr(state, name, value)",
        "state = RunState(context, model, model)",
    ],
)
def test_every_way_to_write_is_seen(line: str) -> None:
    assert writes(line)


def test_a_state_cannot_be_assigned_to() -> None:
    context: Any = SimpleNamespace()
    with pytest.raises(FrozenInstanceError):
        RunState(context, context, context).model = None  # type: ignore[misc, assignment]


def test_run_json_of_earlier_versions_is_read() -> None:
    old = {
        "format_version": 1, "training": "finetune", "stages": [], "notes": [], "histories": {}, "scores": None,
        "adapting": 1.5, "adapted": True,
    }  # fmt: skip
    found = resume.Progress.model_validate(old)
    assert found.adapt_seconds == 1.5 and found.model_dump(by_alias=True) == old
    assert resume.Progress.model_validate(old | {"scores": [[0.1, None]]}).scores == {"heads": [[0.1, None]]}
