"""A training that is stopped, however, ends where an unbroken one ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimvit.train.checkpoint import BEST, LAST, Checkpoints, Interrupted
from slimvit.train.loop import TrainOptions, train
from slimvit.train.step import Diverged
from slimvit.utils.errors import StoreError
from slimvit.utils.lock import UNFINISHED, clean_up

Build = Callable[..., Any]

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average, accumulated": {"ema_decay": 0.9, "accumulate": 3},
    "random in every way": {"crop_scale": 0.6, "mixup": 0.8, "cutmix": 1.0, "drop_path": 0.3, "random_erasing": 0.5},
    "momentum": {"optimizer": "sgd", "momentum": 0.9},
    "repeated": {"repeated_aug": 2, "crop_scale": 0.6},
    "balanced": {"sampler": "balanced"},
}


class Killed(BaseException):
    """Ends a process without giving it a chance to save anything."""


def loss_that(step: int, act: Callable[[], None]) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """Cross-entropy that does something in its ``step``-th call (from 0)."""
    calls = iter(range(1_000_000))

    def loss(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        if next(calls) == step:
            act()
        return F.cross_entropy(model(images), targets)

    return loss


def nothing() -> None:
    pass


def kill() -> None:
    raise Killed


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def interrupts_reach_python() -> Iterator[None]:
    """A shell that starts its commands in the background has them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[k]) for k, x in a.state_dict().items())


@pytest.mark.parametrize(
    ("setting", "minutes"),
    [pytest.param(name, 0, id=f"{name}, every step") for name in SETTINGS]
    + [pytest.param(name, 60, id=f"{name}, every epoch") for name in ("average, accumulated", "random in every way")],
)
def test_killed_is_not_lost(
    untrained: Any, section: Build, loader: Build, tmp_path: Path, setting: str, minutes: float
) -> None:
    wanted = section(epochs=3, **SETTINGS[setting])

    def once(step: int, act: Callable[[], None], states: Checkpoints | None) -> Any:
        return train(
            untrained,
            loader(untrained, wanted, 16, images=64),
            loss_that(step, act),
            wanted,
            TrainOptions(lr=1e-3, checkpoints=states),
        )

    whole, rows = once(-1, nothing, None)
    states = Checkpoints(tmp_path, "go on", minutes)
    for step in random.Random(setting).sample(range(1, 6), 2):
        with pytest.raises(Killed):
            once(step, kill, states)
    model, history = once(-1, nothing, states)
    assert same(model, whole)
    assert [row["loss"] for row in history] == [row["loss"] for row in rows]
    assert {f.name for f in tmp_path.iterdir()} == {LAST}


@pytest.mark.parametrize("ask", [interrupt, terminate])
def test_a_polite_stop_saves_and_says_how_to_go_on(
    untrained: Any, section: Build, loader: Build, tmp_path: Path, ask: Callable[[], None]
) -> None:
    wanted, states = section(epochs=2), Checkpoints(tmp_path, "slimvit run here --resume", 60)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"epoch 0 of 2 and 6 of the next 8 steps.*slimvit run here --resume"):
        train(
            untrained,
            loader(untrained, wanted, 16),
            loss_that(5, ask),
            wanted,
            TrainOptions(lr=1e-3, checkpoints=states),
        )
    assert signal.getsignal(signal.SIGINT) is before
    steps: list[int] = []
    model, _ = train(
        untrained,
        loader(untrained, wanted, 16),
        loss_that(-1, nothing),
        wanted,
        TrainOptions(lr=1e-3, checkpoints=states, after_epoch=lambda model, row: steps.append(row["epoch"])),
    )
    whole, _ = train(untrained, loader(untrained, wanted, 16), loss_that(-1, nothing), wanted, TrainOptions(lr=1e-3))
    assert same(model, whole) and steps == [1, 2]


def test_a_second_interrupt_does_not_wait(untrained: Any, section: Build, loader: Build, tmp_path: Path) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        train(
            untrained,
            loader(untrained, section()),
            loss_that(1, twice),
            section(),
            TrainOptions(lr=1e-3, checkpoints=Checkpoints(tmp_path)),
        )


def test_without_a_folder_interrupts_are_python_s_own(untrained: Any, section: Build, loader: Build) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(untrained, loader(untrained, section()), loss_that(1, interrupt), section(), TrainOptions(lr=1e-3))


def test_the_last_and_the_best_are_kept(untrained: Any, section: Build, loader: Build, tmp_path: Path) -> None:
    found, seen = iter([50.0, 80.0, 60.0]), []

    def measure(model: nn.Module, row: dict[str, Any]) -> None:
        row["top1"] = next(found)
        seen.append({k: v.clone() for k, v in model.state_dict().items()})

    wanted, states = section(epochs=3), Checkpoints(tmp_path)
    model, _ = train(
        untrained,
        loader(untrained, wanted),
        loss_that(-1, nothing),
        wanted,
        TrainOptions(lr=1e-3, after_epoch=measure, checkpoints=states),
    )
    assert {f.name for f in tmp_path.iterdir()} == {LAST, BEST}
    best, last = states.best(), states.last()
    assert best is not None and last is not None
    assert all(torch.equal(v, seen[1][k]) for k, v in best.items())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in last["model"].items())


def test_divergence_names_step_rate_and_the_last_good_state(
    untrained: Any, section: Build, loader: Build, tmp_path: Path
) -> None:
    calls = iter(range(100))

    def breaks(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(images), targets) * (float("inf") if next(calls) == 6 else 1)

    wanted, states = section(epochs=2, warmup_epochs=0), Checkpoints(tmp_path)
    with pytest.raises(Diverged, match=r"became inf in epoch 2, step 3, at lr \S+; the last good state is .*last.pt "):
        train(untrained, loader(untrained, wanted), breaks, wanted, TrainOptions(lr=1e-3, checkpoints=states))
    state = states.last()
    assert state is not None and (state["epoch"], state["batch"]) == (1, 0)
    assert all(t.isfinite().all() for t in state["model"].values())


KILLED_WHILE_WRITING = """
import os, signal, sys, torch
from pathlib import Path
from slimvit.train.checkpoint import Checkpoints
states = Checkpoints(Path(sys.argv[1]))
states.save({"epoch": 1, "batch": 0, "weights": torch.ones(1000)})
when = sys.argv[2]
if when == "half":
    real = torch.save
    def save(content, file):
        file.write(b"half of it")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    torch.save = save
else:
    setattr(os, when, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
states.save({"epoch": 2, "batch": 0, "weights": torch.zeros(1000)})
"""


@pytest.mark.parametrize("when", ["half", "fsync", "replace"])
def test_killed_while_a_state_is_written(tmp_path: Path, when: str) -> None:
    folder = tmp_path / "run" / UNFINISHED
    folder.mkdir(parents=True)
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(folder), when])
    assert done.returncode == -signal.SIGKILL
    clean_up(tmp_path / "run")  # as every command does that goes on
    states = Checkpoints(folder)
    found = states.last()
    assert found is not None and found["epoch"] == 1 and found["weights"].eq(1).all()
    states.save({"epoch": 3, "batch": 0})
    assert [f.name for f in folder.iterdir()] == [LAST]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    where = tmp_path / "disk"
    where.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_disk_leaves_the_state_before(small_disk: Path) -> None:
    states = Checkpoints(small_disk, "slimvit run here --resume")
    states.save({"epoch": 1, "batch": 0, "weights": torch.ones(100_000)})
    with pytest.raises(StoreError, match=r"the disk is full.*The state before it is intact.*slimvit run here --resume"):
        states.save({"epoch": 2, "batch": 0, "weights": torch.ones(400_000)})
    found = states.last()
    assert found is not None and found["epoch"] == 1
    assert [f.name for f in small_disk.iterdir()] == [LAST]


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / LAST).write_bytes(b"no state")
    with pytest.raises(StoreError, match=r"last\.pt: damaged.*begin anew with --force"):
        Checkpoints(tmp_path).last()


FORMS: dict[str, Any] = {
    "no mapping": lambda s: [1],
    "empty": lambda s: {},
    "epochs beyond the end": lambda s: s | {"epoch": 10**9},
    "an epoch in words": lambda s: s | {"epoch": "1"},
    "steps beyond the end": lambda s: s | {"batch": 10**9},
    "no number": lambda s: s | {"total": float("nan")},
    "a history too short": lambda s: s | {"history": []},
    "a history of no rows": lambda s: s | {"history": [{}]},
    "a figure in words": lambda s: s | {"history": [s["history"][0] | {"top1": "high"}]},
    "another network": lambda s: s | {"model": {k: v[..., :1] for k, v in s["model"].items()}},
    "no weights": lambda s: s | {"model": None},
    "another optimizer": lambda s: s | {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_state_of_another_training_is_refused(
    untrained: Any, section: Build, loader: Build, tmp_path: Path, form: str
) -> None:
    def once(epochs: int) -> Any:
        wanted = section(epochs=epochs)
        options = TrainOptions(lr=1e-3, checkpoints=Checkpoints(tmp_path))
        return train(untrained, loader(untrained, wanted, 16, images=32), loss_that(-1, nothing), wanted, options)

    once(1)
    torch.save(FORMS[form](torch.load(tmp_path / LAST)), tmp_path / LAST)
    with pytest.raises(StoreError, match=r"last\.pt: damaged, so it cannot be resumed from .*begin anew with --force"):
        once(2)


def test_a_flipped_bit_of_the_weights_is_found(untrained: Any, tmp_path: Path) -> None:
    states = Checkpoints(tmp_path)
    states.save({"epoch": 1, "batch": 0, "weights": torch.ones(1000)})
    content = bytearray((tmp_path / LAST).read_bytes())
    content[content.index(b"\x00\x00\x80\x3f" * 100) + 200] ^= 1
    (tmp_path / LAST).write_bytes(content)
    with pytest.raises(StoreError, match="damaged, so it cannot be resumed from .the checksum of .* is another one"):
        states.last()


def test_the_best_epoch_of_another_network_is_refused(
    untrained: Any, section: Build, loader: Build, tmp_path: Path
) -> None:
    def once(epochs: int) -> Any:
        wanted = section(epochs=epochs)
        options = TrainOptions(lr=1e-3, checkpoints=Checkpoints(tmp_path))
        return train(untrained, loader(untrained, wanted, 16, images=32), loss_that(-1, nothing), wanted, options)

    once(1)
    Checkpoints(tmp_path).save_best({"a": torch.ones(1)})
    with pytest.raises(StoreError, match=r"best\.pt: damaged"):
        once(2)
