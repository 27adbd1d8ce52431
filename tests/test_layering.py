"""Imports point one way, no files import in a circle, and what must answer at once loads no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "slimvit"

ORDER = ["utils", "config", "models", "data", "measure", "prune", "io", "train", "report", "workflows", "cli"]
"""A file imports from its own package and from packages to the left of it."""

ONE_IMPORTER: dict[str, str | tuple[str, ...]] = {
    "torch_pruning": ("models/cutting.py", "prune/criteria/group_importance.py"),
    "fvcore": "measure/",
    "pandas": "report/",
}
ONE_IMPORTER |= {"onnx": "io/export/onnx_file.py", "onnxruntime": "io/export/onnx_file.py"}

WITHOUT_TORCH = (
    "slimvit",
    "slimvit.cli",
    "slimvit.config.recipe",
    "slimvit.config.shipped",
    "slimvit.config.sweep",
    "slimvit.models.plan",
    "slimvit.io.hub.fetch",
    "slimvit.io.status",
    "slimvit.report.record",
    "slimvit.report.compare.collect",
    "slimvit.report.compare.comparison",
)
"""Imported by help, completion and the tools that only read files."""

FILES = {".".join(f.relative_to(PACKAGE.parent).with_suffix("").parts): f for f in sorted(PACKAGE.rglob("*.py"))}
INSIDE = {name: f for name, f in FILES.items() if f.parent != PACKAGE}


def imported(file: Path) -> set[str]:
    """Full names of what a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules(file: Path) -> set[str]:
    """The files of slimvit that a file imports, as dotted names."""
    found = set()
    for name in imported(file):
        for candidate in (name, f"{name}.__init__", name.rpartition(".")[0], f"{name.rpartition('.')[0]}.__init__"):
            if candidate in FILES:
                found.add(candidate)
                break
    return found


def package(module: str) -> int:
    return ORDER.index(module.split(".")[1])


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one file, by Tarjan's algorithm."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in graph[node]:
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            circle = []
            while not circle or circle[-1] != node:
                circle.append(stack.pop())
            found.append(sorted(circle))

    for node in sorted(graph):
        if node not in number:
            visit(node)
    return [circle for circle in found if len(circle) > 1]


def test_eleven_packages_and_nothing_else():
    names = {p.name for p in PACKAGE.iterdir() if p.name != "__pycache__"}
    assert names == {*ORDER, "__init__.py", "__main__.py", "py.typed"}


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_one_way(name):
    own = {module: file for module, file in INSIDE.items() if package(module) == ORDER.index(name)}
    wrong = {m: sorted(u for u in modules(f) if u in INSIDE and package(u) > package(m)) for m, f in own.items()}
    assert own and {m: used for m, used in wrong.items() if used} == {}


def test_no_circle_of_files():
    graph: dict[str, set[str]] = defaultdict(set)
    for module, file in INSIDE.items():
        graph[module] |= {used for used in modules(file) if used in INSIDE and used != module}
    assert circles(graph) == []


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_tests_mirror_the_package():
    """A folder of tests has the name of a package, at the same place."""
    tests = PACKAGE.parent / "tests"
    folders = {f.relative_to(tests).parent for f in tests.rglob("test_*.py")}
    missing = {str(f) for f in folders if not (PACKAGE / f / "__init__.py").is_file()}
    assert len(folders) > len(ORDER) and missing == set()


@pytest.mark.parametrize(("package_name", "place"), ONE_IMPORTER.items())
def test_one_importer(package_name, place):
    importers = {
        str(f.relative_to(PACKAGE)) for f in FILES.values() if package_name in {n.split(".")[0] for n in imported(f)}
    }
    assert importers and all(i.startswith(place) for i in importers)


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_loads_no_torch(module):
    heavy = "{'torch', 'timm', 'numpy', 'pandas', 'fvcore', 'matplotlib', 'torchvision'}"
    script = f"import sys, {module}; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, f"{module} loads {done.stderr}"
