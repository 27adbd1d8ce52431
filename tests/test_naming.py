"""One meaning for every name: no public class or function is defined in two modules."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "slimvit"


def repeated(sources: dict[str, str]) -> dict[str, list[str]]:
    """Public names of top-level classes and functions that several modules define, with these modules."""
    modules: dict[str, list[str]] = {}
    for module, source in sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                modules.setdefault(node.name, []).append(module)
    return {name: places for name, places in modules.items() if len(places) > 1}


def test_no_public_name_is_defined_twice() -> None:
    sources = {str(file.relative_to(PACKAGE)): file.read_text() for file in sorted(PACKAGE.rglob("*.py"))}
    assert len(sources) > 100 and repeated(sources) == {}


def test_a_name_in_two_modules_is_found() -> None:
    assert repeated({"a.py": "def load(): ...\ndef _read(): ...", "b.py": "class load: ...\ndef _read(): ..."}) == {
        "load": ["a.py", "b.py"]
    }
