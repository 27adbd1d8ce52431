"""How a training is carried out: precision, compiler, logs. What it computes stays the same."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import slimvit
from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.train import loop
from slimvit.utils import distributed
from slimvit.utils.errors import RecipeError, SlimvitError

Tree = dict[str, Any]


def recipe(**finetune: Any) -> Recipe:
    plain = {"epochs": 1, "lr": 1e-4, "crop_scale": 1.0, "hflip": 0.0}
    data = {"name": "digits", "train_images": 32, "eval_images": 20, "batch_size": 8}
    prune = {"heads": 3, "criterion": "magnitude", "calibration_images": 8}
    tree: Tree = {"model": {"name": "vit_digits"}, "data": data, "prune": prune, "dense": {"mix": "layer"}}
    return Recipe.parse(tree | {"finetune": plain | finetune})


@pytest.fixture(scope="module")
def plain() -> Any:
    return slimvit.run(recipe())


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """What the network multiplied in, a dtype a step."""
    found: list[torch.dtype] = []
    real = loop.ModelWithLoss.forward

    def forward(lesson: Any, images: Any, targets: Any) -> Any:
        with torch.no_grad():
            found.append(lesson.model.patch_embed(images).dtype)
        return real(lesson, images, targets)

    monkeypatch.setattr(loop.ModelWithLoss, "forward", forward)
    return found


def test_bf16_trains_in_bf16_and_keeps_fp32(plain: Any, seen: list[torch.dtype]) -> None:
    now = slimvit.run(recipe(), Options(precision="bf16"))
    assert set(seen) == {torch.bfloat16} and len(seen) == 4
    assert {p.dtype for p in now.model.parameters()} == {torch.float32}
    assert now.histories["finetune"][0]["loss"] == pytest.approx(plain.histories["finetune"][0]["loss"], rel=0.05)
    slimvit.run(recipe())
    assert seen[-1] == torch.float32  # each run of a process as it asks


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_compiled_training_is_the_same_training(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    real, compiled = nn.Module.compile, []

    def compile_(module: nn.Module) -> None:
        compiled.append(type(module).__name__)
        real(module, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile_)
    found = slimvit.run(recipe(distill_kind=kind), Options(compile=True))
    wanted = slimvit.run(recipe(distill_kind=kind))
    assert compiled == ["VisionTransformer"]
    mine, theirs = found.histories["finetune"][0], wanted.histories["finetune"][0]
    assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert found.model._compiled_call_impl is None


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(RecipeError, match="no epochs to train"):
        slimvit.run(recipe(epochs=0), Options(compile=True))
    with pytest.raises(RecipeError, match="distill_kind features reads tokens inside the network"):
        slimvit.run(recipe(distill_kind="features"), Options(compile=True))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setattr(distributed, "find_spec", lambda package: None)
    with pytest.raises(SlimvitError, match=rf"pip install 'slimvit\[{name}\]'"):
        slimvit.run(recipe(), Options(log_with=name, out=tmp_path / "run"))


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_gets_the_history(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    now = slimvit.run(recipe(epochs=2), Options(log_with="tensorboard", out=tmp_path / "run"))
    (events,) = (tmp_path / "run" / "logs").rglob("events*")
    found = EventAccumulator(os.fspath(events)).Reload()
    told = [event.value for event in found.Scalars("loss")]
    assert told == pytest.approx([row["loss"] for row in now.histories["finetune"]], rel=1e-5)


def test_the_best_epoch_is_kept_beside_the_last(
    monkeypatch: pytest.MonkeyPatch, slimvit_: Callable[..., Any], tmp_path: Path
) -> None:
    """Where the accuracy falls from epoch to epoch, the first one's network is in best/."""
    real, weights = loop._end_epoch, []

    def end_epoch(state: Any, training: Any) -> None:
        options = training.options

        def falling(model: nn.Module, row: Tree) -> None:
            options.after_epoch(model, row)
            row["top1"] = 90.0 - row["epoch"]
            weights.append({k: v.clone() for k, v in model.state_dict().items()})

        real(state, replace(training, options=replace(options, after_epoch=falling)))

    monkeypatch.setattr(loop, "_end_epoch", end_epoch)
    now = slimvit.run(recipe(epochs=3), Options(out=tmp_path / "run"))
    assert any("best/ holds the network after epoch 1" in note for note in now.report.notes)
    best, last = slimvit.load(tmp_path / "run" / "best"), slimvit.load(tmp_path / "run")
    assert all(torch.equal(v, weights[0][k]) for k, v in best.state_dict().items())
    assert all(torch.equal(v, weights[2][k]) for k, v in last.state_dict().items())
