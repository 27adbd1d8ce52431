"""A sweep: what its runs share, what it skips, and what a stop, a failure or another's folder does to it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.config.sweep import Sweep, points_of
from slimvit.io.sweep_folder import read_contents
from slimvit.models.registry import plan_of
from slimvit.prune.criteria.registry import score_parts
from slimvit.utils.errors import StoreError
from slimvit.utils.lock import lock_owner
from slimvit.workflows import cache, pruning
from slimvit.workflows.run import run
from slimvit.workflows.state import RunContext
from slimvit.workflows.sweep import executors
from slimvit.workflows.sweep.sweep import run_points

Invoke = Callable[..., Any]
BASE: dict[str, Any] = {
    "model": {"name": "vit_digits"},
    "data": {"name": "digits", "eval_images": 40, "train_images": 64, "batch_size": 16},
    "prune": {"calibration_images": 32},
    "finetune": {"lr": 1e-4},
}
GRID = {"prune.criterion": ["residual", "magnitude"], "prune.ratio": [0.25, 0.5], "refit.target": ["none", "stream"]}
POINTS = 8


def made(out: Path, grid: dict[str, Any] | None = None, **more: Any) -> Any:
    file = Sweep.parse({"base": BASE, "grid": grid or GRID})
    return run_points(file, points_of(file), out, Options(device="cpu"), **more)


def figures(out: Path) -> dict[str, Any]:
    """What every point measured, without the seconds it took."""
    found = {}
    for entry in read_contents(out).points:
        stages = json.loads((out / "points" / entry.id / "report.json").read_text())["stages"]
        weights = (out / "points" / entry.id / "model.safetensors").read_bytes()
        found[entry.id] = [s | {"seconds": None} for s in stages], weights
    return found


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[bool]]:
    """A sweep, the criteria it scored by, and for every network it measured whether that was uncut."""
    out, scored, measured = tmp_path_factory.mktemp("whole") / "sweep", [], []
    real = RunContext.outputs

    def score(*args: Any) -> Any:
        scored.append(args[2])
        return score_parts(*args)

    def outputs(self: RunContext, model: Any, images: Any) -> Any:
        measured.append(plan_of(model).removed_heads == 0)
        return real(self, model, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "score_parts", score)
        patch.setattr(RunContext, "outputs", outputs)
        made(out)
    return out, scored, measured


@pytest.fixture(scope="module")
def whole(computed: Any) -> Path:
    return computed[0]


def test_the_original_and_the_scores_are_computed_once(computed):
    _, scored, measured = computed
    assert sorted(scored) == ["magnitude", "residual"]
    assert measured.count(True) == 1 and measured.count(False) == POINTS + POINTS // 2  # pruned, and refit in half


def test_a_point_is_what_the_run_alone_would_be(whole, tmp_path):
    file = Sweep.parse({"base": BASE, "grid": GRID})
    for point in (points_of(file)[1], points_of(file)[-1]):
        run(point.recipe, Options(out=tmp_path / point.id, device="cpu"))
        stages, weights = figures(whole)[point.id]
        alone = json.loads((tmp_path / point.id / "report.json").read_text())["stages"]
        assert [s | {"seconds": None} for s in alone] == stages
        assert (tmp_path / point.id / "model.safetensors").read_bytes() == weights


def test_an_adapted_classifier_is_trained_once(tmp_path, monkeypatch):
    trained = []
    real = cache._write_adapted
    monkeypatch.setattr(cache, "_write_adapted", lambda *a: trained.append(1) or real(*a))
    grid = {"adapt.epochs": [1], "prune.ratio": [0.25, 0.5]}
    made(tmp_path / "sweep", grid)
    first, second = (json.loads(p.read_text()) for p in sorted((tmp_path / "sweep" / "points").glob("*/report.json")))
    assert trained == [1]
    assert first["stages"][0] == second["stages"][0] and first["notes"] == second["notes"] != []


def test_a_damaged_entry_is_named_and_computed_again(tmp_path, capsys):
    base = {**BASE, "adapt": {"epochs": 1}, "prune": {**BASE.get("prune", {}), "ratio": 0.5}}
    recipe, shelf = Recipe.parse(base, "test"), tmp_path / "shelf"

    def made_again(number):
        run(recipe, Options(out=tmp_path / f"{number}", device="cpu", cache=shelf))
        return (tmp_path / f"{number}" / "model.safetensors").read_bytes(), capsys.readouterr().err

    first, _ = made_again(0)
    entries = sorted(path for path in shelf.iterdir() if path.suffix != cache.SUM)
    assert [path.name.partition("-")[0] for path in entries] == ["adapted", "original", "scores"]
    files = [path if path.is_file() else path / "history.json" for path in entries]
    whole = [file.read_bytes() for file in files]
    for number, file in enumerate(files, 1):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        again, told = made_again(number)
        assert again == first and f"{entries[number - 1]}: damaged (its checksum is another one)" in told
    for path in shelf.glob(f"*{cache.SUM}"):  # as an earlier version left it
        path.unlink()
    again, told = made_again("earlier")
    assert again == first and "damaged" not in told
    files[-1].write_text("{}")
    again, told = made_again("no scores")
    assert again == first and "damaged (it holds no scores)" in told
    assert len([*shelf.iterdir()]) == 3 + 1 and len(whole) == 3


def test_seeds_share_what_does_not_depend_on_them():
    recipes = [p.recipe for p in points_of(Sweep.parse({"base": BASE, "grid": {"prune.ratio": [0.5], "seed": [0, 1]}}))]
    first, second = map(cache.keys_of, recipes)
    assert first["original"] == second["original"] and first["scores"] != second["scores"]
    trained = [p.recipe for p in points_of(Sweep.parse({"base": BASE, "grid": {"adapt.epochs": [1], "seed": [0, 1]}}))]
    assert cache.keys_of(trained[0])["original"] != cache.keys_of(trained[1])["original"]


def test_a_second_call_runs_nothing(whole, monkeypatch):
    monkeypatch.setattr(executors, "run", lambda *_: pytest.fail("a finished point was run again"))
    assert made(whole).points == read_contents(whole).points


def test_a_sweep_that_grew_runs_what_is_new(whole, tmp_path):
    out = tmp_path / "sweep"
    shutil.copytree(whole, out)
    before = figures(out)
    made(out, GRID | {"prune.ratio": [0.25, 0.5, 0.75]})
    assert len(figures(out)) == POINTS * 3 // 2 and before.items() <= figures(out).items()


def test_a_point_that_fails_is_told_of_and_the_rest_goes_on(tmp_path):
    out = tmp_path / "sweep"
    contents = made(out, {"prune.ratio": [0.99, 0.5]})
    assert contents == read_contents(out)
    failed, fine = contents.points
    assert "ratio 0.99 removes 36 of 36 heads" in failed.error and fine.error is None
    assert (out / "points" / fine.id / "report.json").is_file()
    assert "PlanError" in (out / "failed" / f"{failed.id}.txt").read_text()


def test_a_bug_in_one_point_keeps_its_traceback(tmp_path, monkeypatch):
    real = executors.run
    broken = lambda recipe, options: 1 / 0 if recipe.prune.ratio == 0.25 else real(recipe, options)  # noqa: E731
    monkeypatch.setattr(executors, "run", broken)
    contents = made(tmp_path / "sweep", {"prune.ratio": [0.25, 0.5]})
    assert [e.error for e in contents.points] == ["ZeroDivisionError: division by zero", None]
    assert "Traceback" in (tmp_path / "sweep" / "failed" / "ratio-0.25.txt").read_text()
    monkeypatch.setattr(executors, "run", real)
    assert [e.error for e in made(tmp_path / "sweep", {"prune.ratio": [0.25, 0.5]}).points] == [None, None]
    assert not (tmp_path / "sweep" / "failed").exists()


def test_another_run_in_a_points_place_is_left_alone(whole, tmp_path):
    out = tmp_path / "sweep"
    shutil.copytree(whole, out)
    file = Sweep.parse({"base": BASE | {"seed": 1}, "grid": GRID})
    with pytest.raises(StoreError, match="holds another run than this sweep's"):
        run_points(file, points_of(file), out, Options(device="cpu"))
    assert figures(out) == figures(whole)


def test_a_folder_that_is_no_sweep_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(StoreError, match="in use"):
        made(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


def test_several_processes_give_the_same_figures(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # a thread each, as here
    grid = {"prune.criterion": ["residual"], "prune.ratio": [0.5, 0.99], "refit.target": ["stream"]}
    contents = made(tmp_path / "sweep", grid, jobs=2)
    told = {e.id: e.error for e in contents.points}
    assert sum(error is not None and "ratio 0.99 removes" in error for error in told.values()) == 1
    for id, (stages, _) in figures(whole).items():
        if id in told:
            found = json.loads((tmp_path / "sweep" / "points" / id / "report.json").read_text())["stages"]
            assert [s | {"seconds": None} for s in found] == stages
    assert sum(id in told for id in figures(whole)) == 1


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (pip install 'slimvit[ray]')")
def test_a_ray_cluster_gives_the_same_figures(whole, tmp_path):
    import ray

    ray.init(num_cpus=1, log_to_driver=False, include_dashboard=False)
    try:
        made(tmp_path / "sweep", GRID | {"prune.ratio": [0.5], "refit.target": ["stream"]}, engine="ray")
    finally:
        ray.shutdown()
    found = {id: stages for id, (stages, _) in figures(tmp_path / "sweep").items()}
    assert len(found) == 2 and found == {id: figures(whole)[id][0] for id in found}


def to_stop(folder: Path) -> list[str]:
    """The words of a sweep of three points that saves all the time."""
    points = [
        {"name": "cut"},
        {"name": "trained", "change": {"finetune.epochs": 2}},
        {"name": "more", "change": {"prune.ratio": 0.5}},
    ]
    base = BASE | {"prune": BASE["prune"] | {"ratio": 0.25}}
    (folder / "s.yaml").write_text(yaml.safe_dump({"base": base, "points": points}))
    return ["sweep", str(folder / "s.yaml"), "--device", "cpu", "--save-minutes", "0"]


@pytest.fixture(scope="module")
def unbroken(slimvit_: Invoke, drawing: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    with drawing():
        slimvit_(*to_stop(folder), "--out", folder / "sweep")
    return folder / "sweep"


STRESS = pytest.mark.skipif("SLIMVIT_STRESS" not in os.environ, reason="starts several processes: make stress")


@pytest.mark.parametrize(("how", "jobs"), [pytest.param(signal.SIGKILL, 2, marks=STRESS), (signal.SIGTERM, 1)])
def test_a_sweep_stopped_at_random_ends_as_an_unbroken_one(
    unbroken: Path, tmp_path: Path, how: signal.Signals, jobs: int, slimvit_: Invoke, drawing: Any
) -> None:
    words, out = to_stop(tmp_path), tmp_path / "sweep"
    command = [sys.executable, "-m", "slimvit", *words, "--out", str(out), "--jobs", str(jobs)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (out / "points").is_dir() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(random.Random(time.time()).uniform(0, 4))
    process.send_signal(how)
    said = process.communicate()[1]
    while any(lock_owner(out / "points" / name) for name in ("cut", "trained", "more")):  # its runs save and end
        time.sleep(0.02)
    assert process.returncode in (-how, 0, 130) and (process.returncode != 130 or "continues the sweep" in said)
    with drawing():  # as the process that was stopped did
        slimvit_(*words, "--out", out)
    assert figures(out) == figures(unbroken)
    assert (out / "points.json").read_bytes() == (unbroken / "points.json").read_bytes()
    here, there = ({f.name: f.read_bytes() for f in (folder / "report").iterdir()} for folder in (out, unbroken))
    assert here == there and "tradeoff.html" in here


def test_ctrl_c_during_a_training_names_the_way_on(tmp_path, monkeypatch, slimvit_: Invoke):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"base": BASE, "grid": {"prune.ratio": [0.5]}}))

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(executors, "run", interrupt)
    result = slimvit_("sweep", tmp_path / "s.yaml", "--out", tmp_path / "sweep", code=130)
    assert "the same command continues the sweep" in result.output
    monkeypatch.undo()
    slimvit_("sweep", tmp_path / "s.yaml", "--out", tmp_path / "sweep")


def test_the_command_lists_checks_and_begins_anew(tmp_path, slimvit_: Invoke):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"base": BASE, "grid": {"prune.ratio": [0.25, 0.5]}}))
    listed = slimvit_("sweep", tmp_path / "s.yaml", "--dry-run").output.split()
    assert listed == ["ratio-0.25", "ratio-0.5"] and not (tmp_path / "sweep").exists()
    slimvit_("sweep", tmp_path / "s.yaml", code=2)
    slimvit_("sweep", tmp_path / "s.yaml", "--out", tmp_path / "sweep")
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({"base": BASE | {"seed": 1}, "grid": {"prune.ratio": [0.5]}}))
    slimvit_("sweep", tmp_path / "t.yaml", "--out", tmp_path / "sweep", code=1)
    slimvit_("sweep", tmp_path / "t.yaml", "--out", tmp_path / "sweep", "--force")
    assert [f.name for f in (tmp_path / "sweep" / "points").iterdir()] == ["ratio-0.5"]
    assert "did you mean quick" in slimvit_("sweep", "quik", "--out", tmp_path / "other", code=1).output
