"""How a recipe's training options reach a run, and which runs they stop before their long part."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import slimvit
from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.data.loaders import eval_loader
from slimvit.data.preprocessing import preprocessing_of
from slimvit.data.sources import Images, open_data
from slimvit.io.embedded import EMBEDDED
from slimvit.measure.accuracy import Outputs, compare
from slimvit.utils.errors import SlimvitError
from slimvit.workflows import run, training
from slimvit.workflows.state import RunContext

Tree = dict[str, Any]
DATA: Tree = {"name": "digits", "train_images": 48, "eval_images": 30, "batch_size": 8}
PLAIN: Tree = {"epochs": 1, "crop_scale": 1.0, "hflip": 0.0}


def recipe(finetune: Tree, **sections: Tree) -> Recipe:
    tree: Tree = {"model": {"name": "vit_digits"}, "data": DATA, "finetune": PLAIN | finetune}
    return Recipe.parse(tree | sections)


def test_the_average_is_what_is_reported_and_saved(tmp_path: Path) -> None:
    options = {"ema_decay": 0.9, "accumulate": 2, "layer_decay": 0.8, "repeated_aug": 2, "lr": 3e-3}
    wanted = recipe(options | {"epochs": 2}, prune={"heads": 3, "criterion": "magnitude"}, dense={"mix": "layer"})
    now = slimvit.run(wanted, Options(out=tmp_path / "run"))
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").read_text().splitlines()))
    assert [row["batch"] for row in rows] == ["16", "16"]
    model = slimvit.load(tmp_path / "run")
    found = slimvit.evaluate(model, eval_loader(open_data(wanted.data).val, preprocessing_of(model), 8))
    assert found.loss == pytest.approx(now.report.stages[-1].loss, rel=1e-4)
    assert float(rows[-1]["top1"]) == now.report.stages[-1].top1
    raw = slimvit.run(wanted.model_copy(update={"finetune": wanted.finetune.model_copy(update={"ema_decay": None})}))
    assert raw.report.stages[-1].loss != now.report.stages[-1].loss
    assert raw.report.stages[-2].loss == now.report.stages[-2].loss


def test_evaluated_as_often_as_asked_and_no_network_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[torch.nn.Module] = []
    outputs = RunContext.outputs

    def counted(context: RunContext, model: torch.nn.Module, images: Images) -> Outputs:
        evaluated.append(model)
        return outputs(context, model, images)

    monkeypatch.setattr(RunContext, "outputs", counted)
    now = slimvit.run(recipe({"epochs": 5, "eval_every": 2, "lr": 3e-3}), Options(out=tmp_path / "run"))
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").read_text().splitlines()))
    assert [bool(row["top1"]) for row in rows] == [False, True, False, True, True]
    assert len(evaluated) == 4  # the original too
    assert float(rows[-1]["top1"]) == now.report.stages[-1].top1
    model = slimvit.load(tmp_path / "run")
    found = slimvit.evaluate(model, eval_loader(now.context.data.val, preprocessing_of(model), 8))
    assert found.loss == pytest.approx(now.report.stages[-1].loss, rel=1e-4)


def test_the_best_evaluated_epoch_is_kept_under_its_own_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([80.0, 50.0])  # after epochs 2 and 3
    monkeypatch.setattr(training, "compare", lambda *outputs: replace(compare(*outputs), top1=next(told)))
    now = slimvit.run(recipe({"epochs": 3, "eval_every": 2}), Options(out=tmp_path / "run"))
    assert "best/ holds the network after epoch 2 of the fine-tuning (80.0 top-1" in "".join(now.notes)


def test_the_head_alone_is_fine_tuned() -> None:
    now = slimvit.run(recipe({"train": "head", "sampler": "balanced", "optimizer": "sgd", "lr": 0.1}))
    before, after = slimvit.load(EMBEDDED["vit_digits"]).state_dict(), now.model.state_dict()
    assert {k for k in after if not torch.equal(after[k], before[k])} == {"head.weight", "head.bias"}


@pytest.mark.parametrize("mode", ["head", "all"])
def test_classes_are_balanced_before_the_cut_too(digit_folder: Any, tmp_path: Path, mode: str) -> None:
    data = DATA | {"name": str(digit_folder(tmp_path / "three")), "train_images": 24}
    runs = [
        slimvit.run(recipe({"epochs": 0}, data=data, adapt={"epochs": 1, "mode": mode, "sampler": sampler}))
        for sampler in ("shuffle", "balanced")
    ]
    assert runs[0].report.stages[0].loss != runs[1].report.stages[0].loss


@pytest.mark.parametrize(
    ("finetune", "model", "told"),
    [
        ({"sampler": "balanced"}, {}, "has no labels, so its classes cannot be balanced; drop sampler"),
        ({"train": "head"}, {"num_classes": 0}, "vit_digits: has no classifier, so train head has nothing to train"),
        ({"distill_kind": "hard"}, {"num_classes": 0}, "the model has no classifier, so it cannot learn classes; use"),
        ({"optimizer": "bnbadam"}, {}, "optimizer bnbadam: .*; choose another, e.g. adamw"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(
    digit_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finetune: Tree, model: Tree, told: str
) -> None:
    if "optimizer" in finetune and torch.cuda.is_available():
        pytest.skip("this machine may have what it needs")
    monkeypatch.setattr(run, "measure", lambda *args: pytest.fail("too late"))
    data = DATA | {"name": str(digit_folder(tmp_path / "bare", labelled=False))}
    with pytest.raises(SlimvitError, match=told) as caught:
        cut = {"heads": 3, "criterion": "magnitude"}
        slimvit.run(recipe(finetune, model={"name": "vit_digits"} | model, data=data, prune=cut))
    assert "\n" not in str(caught.value)
