"""Imports point one way, heavy packages have one importer each, and what must answer at once loads no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "slimvit"

LAYERS = (
    {"errors", "choices", "progress", "ranges", "embedded", "allocator", "reading", "free_memory"},
    {"training", "disk", "hubname", "hub_errors"},
    {"defects", "claim", "hub"},
    {"document"},
    {"options", "recipe", "plan", "folders", "shipped"},
    {"grid"},
    {"models", "engine", "seeds"},
    {"dense"},
    {"prune", "train", "measure", "data", "report"},
    {"store", "ladders"},
    {"export"},
    {"branch_timing"},
    {"branch_latency"},
    {"timm_repo"},
    {"origin"},
    {"creation", "feature_maps"},
    {"sources", "runstate", "planning"},
    {"catalogue", "checks", "prediction", "inspection", "forecast", "promise", "rundir", "sweepdir", "shelf"},
    {"unfinished", "contenders", "gathering", "standing"},
    {"learning", "verdict", "packing"},
    {"pipeline"},
    {"evaluation", "exporting", "crew", "benching", "publishing"},
    {"sweeping"},
    {"commands"},
    {"__main__"},
)
"""A module may import from the layers above it in this list and from its own package; never from its neighbours."""

ONE_IMPORTER = {"torch_pruning": "prune/torch_pruning.py", "fvcore": "measure/", "pandas": "report/"}
ONE_IMPORTER |= {"onnx": "export/onnx_file.py", "onnxruntime": "export/runtime.py"}

WITHOUT_TORCH = (
    "slimvit",
    "slimvit.commands",
    "slimvit.shipped",
    "slimvit.plan",
    "slimvit.recipe",
    "slimvit.grid",
    "slimvit.report.record",
    "slimvit.gathering",
    "slimvit.hub",
    "slimvit.standing",
    "slimvit.report.comparison",
)
"""Imported by help, completion and the tools that only read files."""

FILES = sorted(f for f in PACKAGE.rglob("*.py") if f != PACKAGE / "__init__.py")  # the lazy list of public names


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


def unit(file: Path) -> str:
    """The module or subpackage of slimvit that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def test_every_module_has_a_layer():
    assert {unit(f) for f in FILES} == set().union(*LAYERS)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    own = unit(file)
    used = {name.split(".")[1] for name in imported(file) if name.startswith("slimvit.")} - {own}
    assert {u for u in used if layer(u) >= layer(own)} == set()


@pytest.mark.parametrize(("package", "place"), ONE_IMPORTER.items())
def test_one_importer(package, place):
    importers = {str(f.relative_to(PACKAGE)) for f in FILES if package in {n.split(".")[0] for n in imported(f)}}
    assert importers and all(i.startswith(place) for i in importers)


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_loads_no_torch(module):
    heavy = "{'torch', 'timm', 'numpy', 'pandas', 'fvcore', 'matplotlib', 'torchvision'}"
    script = f"import sys, {module}; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, f"{module} loads {done.stderr}"
