"""Files that earlier versions wrote load: tests/data_of_earlier_versions."""

import json
from pathlib import Path

import torch

import slimvit
from slimvit.io.saved_model import load_folder
from slimvit.io.sweep_folder import read_contents
from slimvit.measure.flops.count import count_macs, input_size_of
from slimvit.measure.flops.parts import count_params
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of
from slimvit.prune.criteria.scores import read_scores
from slimvit.report.record import Report

DATA = Path(__file__).parent / "data_of_earlier_versions"
RUN = DATA / "run"


def test_a_run_folder():
    """A ViT cut to parameters, in two rounds, whole branches too."""
    report = Report.from_json(json.loads((RUN / "report.json").read_text()))
    model = load_folder(RUN)
    assert count_params(model) == report.last.params and count_macs(model).total == report.last.macs
    plan = plan_of(model)
    assert (plan.kept_heads, plan.kept_neurons) == (report.last.units["heads"], report.last.units["mlp"])
    assert model(torch.zeros(1, *input_size_of(model))).isfinite().all()


def test_a_plan_is_written_as_it_was(tmp_path):
    plan = SlimPlan.read(RUN / "plan.json")
    plan.write(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_bytes() == (RUN / "plan.json").read_bytes()


def test_a_plan_of_heads_alone():
    """Format 1; the neurons of the model stay as they are."""
    blocks = [{"block": f"blocks.{i}", "heads": 6, "kept_heads": [0, 2]} for i in range(6)]
    plan = SlimPlan.from_json({"format_version": 1, "model": "vit", "blocks": blocks})
    slim = slimvit.prune_model(slimvit.load("vit_digits"), plan)
    assert plan.parts == ("heads",) and plan_of(slim).kept_heads == 12
    assert plan_of(slim).kept_neurons == plan_of(slim).neurons > 0


def test_a_recipe():
    recipe = slimvit.Recipe.read(RUN / "recipe.yaml")
    assert recipe.prune.budget == ("params", 0.35) and recipe.prune.parts == ["heads", "mlp", "branches"]


def test_a_sweep():
    contents = read_contents(DATA / "sweep")
    assert len(contents.points) > 10 and not any(point.error for point in contents.points)


def test_scores_in_a_cache():
    (file,) = (DATA / "cache").iterdir()
    scores = read_scores(file, plan_of(slimvit.load("vit_digits")))
    assert [*scores.parts] == ["heads"] and [len(s.order) for s in scores.of("heads")] == [6] * 6
    assert json.loads(file.read_text())["heads"][0]["costs"] == list(scores.of("heads")[0].costs)
