"""A whole run that is stopped and goes on, through the command line, ends as one that was not stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from slimvit.cli import main
from slimvit.io.status import folder_status
from slimvit.train.checkpoint import Checkpoints

Invoke = Callable[..., Any]
WORDS = ["prune", "vit_digits", "--data", "digits", "--ratio", "0.5", "--calibration-images", "32", "--dense", "layer"]
WORDS += ["--train-images", "64", "--eval-images", "40", "--batch-size", "16"]
WORDS += ["--finetune-epochs", "3", "--lr", "1e-4"]


@pytest.fixture(scope="module")
def whole(slimvit_: Invoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    slimvit_(*WORDS, "--out", out)
    return out


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def figures(run: Path) -> list[dict[str, Any]]:
    return [s | {"seconds": None} for s in json.loads((run / "report.json").read_text())["stages"]]


def started(out: Path, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "slimvit", *WORDS, "--out", str(out), *more]
    return subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(3000):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def test_killed_in_the_middle(whole: Path, slimvit_: Invoke, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = started(out, "--save-minutes", "0")
    wait_for(out / "unfinished" / "last.pt", process)
    time.sleep(random.uniform(0, 1.5))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if (out / "unfinished").exists():  # otherwise it was faster than the signal
        assert not (out / "slim.json").exists()
        slimvit_(*WORDS, "--out", out, code=1)  # says what is there, and touches nothing
        slimvit_("run", out, "--resume")
    assert weights(out) == weights(whole) and figures(out) == figures(whole)
    assert {f.name for f in out.iterdir()} == {f.name for f in whole.iterdir()}
    assert (out / "history.csv").read_text().count("\n") == 4


@pytest.mark.skipif("SLIMVIT_STRESS" not in os.environ, reason="starts a process: make stress")
def test_an_interrupt_ends_with_the_command_that_goes_on(whole: Path, slimvit_: Invoke, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = started(out)
    wait_for(out / "unfinished" / "run.json", process)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    if process.returncode != 0:  # the interrupt came before the first step, or after it
        assert "Traceback" not in told
        if process.returncode == 130:
            assert f"Go on with: slimvit run {out} --resume" in told
        slimvit_("run", out, "--resume")
    assert weights(out) == weights(whole)


@contextmanager
def interrupted_after(updates: int) -> Iterator[None]:
    """Inside, a training is interrupted after so many steps of its optimizer."""
    from slimvit.train.state import TrainState

    real = TrainState.update

    def update(state: TrainState) -> None:
        real(state)
        if state.updates == updates:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainState, "update", update)
        yield


@pytest.fixture(scope="module")
def stopped(slimvit_: Invoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose training stopped in its second epoch."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with interrupted_after(6):
        result = slimvit_(*WORDS, "--out", out, code=130)
    assert f"Go on with: slimvit run {out} --resume" in result.output
    return out


@pytest.fixture
def interrupted(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def test_the_same_command_goes_on_too(interrupted: Path, whole: Path, slimvit_: Invoke) -> None:
    assert [f.name for f in interrupted.iterdir()] == ["unfinished"]
    assert (interrupted / "unfinished" / "history.csv").read_text().count("\n") == 2
    result = slimvit_(*WORDS, "--out", interrupted, "--resume")
    assert "2/3" in result.stderr and "1/3" not in result.stderr
    assert weights(interrupted) == weights(whole)
    again = slimvit_(*WORDS, "--out", interrupted, "--resume")
    assert "this run is finished" in again.stderr and "finetuned" in again.stdout


def test_only_epochs_that_a_state_holds_are_counted(
    interrupted: Path, slimvit_: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt  # the second epoch is measured, its state is never written

    monkeypatch.setattr(Checkpoints, "save", killed)
    slimvit_("run", interrupted, "--resume", code=1)
    status = folder_status(interrupted)
    assert status is not None and "an unfinished run (1 epoch of its training saved)" in status.text
    (interrupted / "unfinished" / "last.pt").unlink()
    assert "(0 epochs of its training saved)" in slimvit_("inspect", interrupted).stdout


def test_other_settings_are_refused(interrupted: Path, slimvit_: Invoke) -> None:
    before = (interrupted / "unfinished" / "last.pt").read_bytes()
    words = [*WORDS[:-1], "2e-4"]
    result = slimvit_(*words, "--out", interrupted, "--resume", code=1)
    assert "other settings (finetune.lr: 0.0001, now 0.0002)" in result.output
    assert (interrupted / "unfinished" / "last.pt").read_bytes() == before


def test_force_begins_anew(interrupted: Path, whole: Path, slimvit_: Invoke) -> None:
    result = slimvit_(*WORDS, "--out", interrupted, code=1)
    assert f"holds an unfinished run; go on with slimvit run {interrupted} --resume" in result.output
    slimvit_(*WORDS, "--out", interrupted, "--force")
    assert weights(interrupted) == weights(whole) and not (interrupted / "unfinished").exists()


def test_an_earlier_run_stays_until_the_new_one_is_done(
    whole: Path, slimvit_: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    slimvit_(
        "prune", "vit_digits", "--data", "digits", "--heads", 5, "--refit", "none", "--eval-images", 40, "--out", out
    )
    before = load_file(out / "model.safetensors").keys(), weights(out)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("slimvit.workflows.training.finetune", stop)
        slimvit_(*WORDS, "--out", out, "--force", code=1)
    assert (load_file(out / "model.safetensors").keys(), weights(out)) == before
    slimvit_("run", out, "--resume")
    assert weights(out) == weights(whole)


def test_an_interrupted_adaptation_goes_on(slimvit_: Invoke, tmp_path: Path) -> None:
    words = ["prune", "vit_digits", "--data", "digits", "--heads", 3, "--train-images", 32, "--eval-images", 40]
    words += ["--criterion", "magnitude"]
    words += ["--adapt", "all", "--adapt-epochs", 2, "--adapt-lr", "1e-4", "--batch-size", 16, "--finetune-epochs", 1]
    slimvit_(*words, "--out", tmp_path / "whole")
    with interrupted_after(3):
        slimvit_(*words, "--out", tmp_path / "run", code=130)
    slimvit_("run", tmp_path / "run", "--resume")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")
    assert (tmp_path / "run" / "history.csv").read_text().count("\nfinetune") == 1


def test_resume_needs_something(slimvit_: Invoke, tmp_path: Path) -> None:
    assert "name it with --out" in slimvit_(*WORDS, "--resume", code=1).output
    (tmp_path / "empty").mkdir()
    assert "holds no run" in slimvit_("run", tmp_path / "empty", "--resume", code=1).output


@pytest.mark.parametrize("damage", ["run.json", "recipe.yaml", "model/slim.json", "last.pt"])
def test_damaged_files_are_named(interrupted: Path, slimvit_: Invoke, damage: str) -> None:
    (interrupted / "unfinished" / damage).write_text("{")
    result = slimvit_(*WORDS, "--out", interrupted, "--resume", code=1)
    assert damage in result.output and main.name is not None
