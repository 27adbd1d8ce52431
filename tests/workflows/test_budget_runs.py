"""Runs to a budget: heads, neurons and branches, in one round or several."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import slimvit
from slimvit.io.embedded import EMBEDDED
from slimvit.models.registry import plan_of

Invoke = Callable[..., Any]
QUICK = ("--data", "digits", "--train-images", 64, "--eval-images", 30, "--calibration-images", 32, "--json")


def stages(slimvit_: Invoke, model: str, *words: Any) -> list[dict[str, Any]]:
    return json.loads(slimvit_("prune", model, *QUICK, *words).stdout)["stages"]


@pytest.mark.parametrize(("model", "dense"), [("vit_digits", ()), ("swin_digits", ("--dense", "head"))])
def test_the_finished_model_costs_at_most_the_target(model: str, dense: tuple[str, ...], slimvit_: Invoke) -> None:
    first, *_, last = stages(slimvit_, model, "--target-macs", 0.6, "--parts", "heads,mlp", *dense)
    assert 0.59 * first["macs"] < last["macs"] <= 0.6 * first["macs"]
    assert last["heads"] <= first["heads"] and last["neurons"] < first["neurons"]


def test_parameters(slimvit_: Invoke) -> None:
    first, *_, last = stages(slimvit_, "vit_digits", "--target-params", 0.4)
    assert 0.39 * first["params"] < last["params"] <= 0.4 * first["params"]


def test_branches_go_whole_and_the_folder_holds_them(slimvit_: Invoke, tmp_path: Path) -> None:
    stages(slimvit_, "vit_digits", "--target-macs", 0.4, "--parts", "branches", "--out", tmp_path / "run")
    model = slimvit.load(tmp_path / "run")
    assert {len(b.kept_heads) for b in plan_of(model).blocks} <= {0, 6}
    assert {len(b.kept_neurons) for b in plan_of(model).blocks} == {0, 288}
    again = json.loads(slimvit_("evaluate", tmp_path / "run", "--json").stdout)
    assert again["top1"] == json.loads((tmp_path / "run" / "report.json").read_text())["stages"][-1]["top1"]


def test_the_choice_of_parts_is_logged(slimvit_: Invoke) -> None:
    words = ("prune", "vit_digits", *QUICK, "--criterion", "magnitude", "--dry-run")
    assert "so MLP neurons are cut too" in slimvit_(*words, "--target-macs", 0.4).stderr
    assert "only heads are cut; --parts heads,mlp often loses" in slimvit_(*words, "--target-macs", 0.8).stderr


@pytest.mark.parametrize(
    "budget", [("--target-macs", 0.5), ("--ratio", 0.5, "--mlp-ratio", 0.5)], ids=["macs", "ratio"]
)
def test_rounds_end_at_the_same_size(budget: tuple[Any, ...], slimvit_: Invoke) -> None:
    one, three = (stages(slimvit_, "vit_digits", *budget, "--steps", n)[-1] for n in (1, 3))
    assert three["macs"] == pytest.approx(one["macs"], rel=0.01)
    if budget[0] == "--ratio":
        assert (three["heads"], three["neurons"]) == (18, 864) == (one["heads"], one["neurons"])


def test_training_between_rounds(slimvit_: Invoke, tmp_path: Path) -> None:
    words = ("--target-macs", 0.5, "--steps", 2, "--no-augment")
    plain = stages(slimvit_, "vit_digits", *words)
    trained = stages(slimvit_, "vit_digits", *words, "--step-epochs", 1, "--out", tmp_path / "run")
    assert [s["stage"] for s in trained] == [s["stage"] for s in plain] == ["original", "pruned", "refit"]
    assert trained[-1]["loss"] != plain[-1]["loss"]
    assert "round 1" in (tmp_path / "run" / "history.csv").read_text()


def test_a_plan_of_neurons_is_edited_and_carried_out(slimvit_: Invoke, tmp_path: Path) -> None:
    words = ("--mlp-ratio", 0.5, "--criterion", "magnitude", "--dry-run", "--out", tmp_path / "plan")
    slimvit_("prune", "vit_digits", *QUICK, *words)
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    plan["blocks"][2]["kept_neurons"] = "0-7,16"
    (tmp_path / "mine.json").write_text(json.dumps(plan))
    stages(slimvit_, "vit_digits", "--plan", tmp_path / "mine.json", "--out", tmp_path / "run")
    assert plan_of(slimvit.load(tmp_path / "run")).blocks[2].kept_neurons == (*range(8), 16)


def test_no_neurons_left_is_a_figure(slimvit_: Invoke, tmp_path: Path) -> None:
    """`Not measured` is for networks of which no neuron could go."""
    plan = plan_of(slimvit.load(EMBEDDED["vit_digits"]))
    plan.keeping(neurons=[()] * len(plan.blocks)).write(tmp_path / "plan.json")
    found = stages(slimvit_, "vit_digits", "--plan", tmp_path / "plan.json")
    assert [stage["neurons"] for stage in found] == [plan.kept_neurons, 0, 0]
