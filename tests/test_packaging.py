"""What a user gets from `pip install`: the wheel holds the model, the recipes and the licence, and works elsewhere."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

from slimvit.io.embedded import EMBEDDED

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "benchmarks", "tests")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy of the checkout, without the network."""
    work = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, work / "source", ignore=LEFT_OUT)
    words = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(work / "dist"), str(work / "source")]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return zipfile.ZipFile(next((work / "dist").glob("*.whl")))


def test_the_wheel_is_complete(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert "slimvit/py.typed" in names
    assert {f"slimvit/io/embedded/{name}/{f}" for name in EMBEDDED for f in ("slim.json", "model.safetensors")} <= names
    assert {f"slimvit/recipes/{f.name}" for f in (ROOT / "recipes").glob("*.yaml")} <= names
    assert "slimvit/report/compare/page.html" in names
    code = {str(f.relative_to(ROOT)) for f in (ROOT / "slimvit").rglob("*.py")}
    assert code == {n for n in names if n.endswith(".py")}
    info = next(n for n in names if n.endswith("/METADATA")).split("/")[0]
    assert any(n.startswith(info) and n.endswith("/LICENSE") for n in names)
    assert "slimvit = slimvit.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert re.search(r"^License(-Expression)?: Apache-2.0$", wheel.read(f"{info}/METADATA").decode(), re.M)


def test_the_wheel_works_away_from_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    wheel.extractall(site)
    work.mkdir()

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "slimvit", *words]
        env = os.environ | {"PYTHONPATH": str(site)}
        return subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=True).stdout

    where = [sys.executable, "-c", "import slimvit; print(slimvit.__file__)"]
    env = os.environ | {"PYTHONPATH": str(site)}
    found = subprocess.run(where, cwd=work, env=env, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(site))
    listed = [line.split()[0] for line in run("recipes", "list").splitlines() if line.startswith("  ")]
    both = [sorted(f.stem for f in (ROOT / "recipes" / kind).glob("*.yaml")) for kind in (".", "sweeps")]
    assert listed == both[0] + both[1] and all(both)
    assert [line.split()[0] for line in run("models", "--embedded").splitlines()] == sorted(EMBEDDED)


def test_the_embedded_models_are_small() -> None:
    for folder in EMBEDDED.values():
        assert sum(f.stat().st_size for f in folder.iterdir()) <= 2 * 2**20


def test_the_lowest_versions_are_those_that_are_tested() -> None:
    """tests/lowest.txt names every package that setup.cfg asks for, at the version it asks for at least."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    asked = dict(line.split(">=") for line in config["options"]["install_requires"].split())
    lines = (ROOT / "tests" / "lowest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert asked.keys() == tested.keys()
    assert [name for name in asked if Version(asked[name]) != Version(tested[name])] == []
