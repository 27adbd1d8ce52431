"""The model card: what the Hub reads of it, and that names out of files are nothing but names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml

import slimvit
from slimvit.report.model_card import CardFacts, card
from slimvit.report.record import Report, Stage

Invoke = Callable[..., Any]
ODD = [
    "---\nlicense: evil",
    "a|b",
    "<script>x</script>",
    "[x](http://evil)",
    "```\n# no",
    "\x1b[31m",
    "\u202ered",
    "ok",
]


def parts(text: str) -> tuple[dict[str, Any], str]:
    """Metadata and text."""
    begin, front, body = text.split("---\n", 2)
    assert begin == ""
    return yaml.safe_load(front), body


def test_the_card_of_a_run(run: Path, slimvit_: Invoke) -> None:
    words = ("push", run, "me/half", "--license", "apache-2.0", "--base-model", "hf-hub:you/vit", "--dry-run")
    shown = slimvit_(*words).stdout
    found, body = parts(shown[shown.index("---\n") :])
    assert found["library_name"] == "slimvit" and found["pipeline_tag"] == "image-classification"
    assert (found["license"], found["base_model"]) == ("apache-2.0", "you/vit") and "datasets" not in found
    report = Report.read(run / "report.json")
    before, after = report.reference, report.last
    rows = {row[0]: row[1:] for row in (re.split(r" *\| *", line)[1:-1] for line in body.splitlines() if "|" in line)}
    assert rows["heads"] == ["36", "18"] and rows["top-1"] == [f"{before.top1:.1f}", f"{after.top1:.1f}"]
    assert rows["FLOPs (G)"] == [f"{before.macs / 1e9:.3f}", f"{after.macs / 1e9:.3f}"]
    assert 'slimvit.load("hf-hub:me/half")' in body and "40 images of digits" in body and "ratio: 0.5" in body


@pytest.mark.parametrize(
    ("name", "base"),
    [("vit_digits", None), ("deit_tiny_patch16_224", "timm/deit_tiny_patch16_224.fb_in1k"), ("hf-hub:a/b@v1", "a/b")],
)
def test_the_base_model_is_told_where_it_can_be(name: str, base: str | None, run: Path, tmp_path: Path) -> None:
    """Also of a run that goes on from another."""
    from slimvit.config.recipe import Recipe
    from slimvit.workflows.push.contents import _base_model

    recipe = Recipe.read(run / "recipe.yaml")
    first = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": name})})
    assert _base_model(first) == base
    slimvit.save(slimvit.load(run), tmp_path / "first")
    (tmp_path / "first" / "recipe.yaml").write_text(first.to_yaml())
    model = recipe.model.model_copy(update={"name": str(tmp_path / "first")})
    assert _base_model(recipe.model_copy(update={"model": model})) == base
    drawn = first.model.model_copy(update={"pretrained": False})
    assert _base_model(first.model_copy(update={"model": drawn})) is None


def test_odd_names_are_only_names(vit: Any, tmp_path: Path, slimvit_: Invoke) -> None:
    slimvit.save(vit(num_classes=len(ODD)), tmp_path / "run", class_names=ODD)
    shown = slimvit_("push", tmp_path / "run", "me/odd", "--dry-run").stdout
    found, body = parts(shown[shown.index("---\n") :])
    assert "license" not in found and found.keys() == {"library_name", "pipeline_tag", "tags"}
    assert not {"\x1b", "\u202e"} & set(shown)
    line = next(line for line in body.splitlines() if line.startswith("Classes: "))
    assert line.endswith(", ok.") and r"\<script>" in line and r"\[x\](http" in line and r"a\|b" in line
    assert not re.search(r"^# no", body, re.M) and "It was not measured" in body


def test_a_recipe_does_not_end_its_own_block() -> None:
    """Backticks and line breaks in what it says included."""
    text = yaml.safe_dump({"data": {"name": "x " * 60 + "```\n# Title\n`````"}})
    facts = CardFacts("me/x", "vit_tiny_patch16_224", 0, (), (3, 32, 32), {"heads": (6, 3)}, None, recipe=text)
    body = parts(card(facts))[1]
    fence = re.search(r"^(`{3,})yaml$", body, re.M)
    assert fence is not None and body.count(fence[1]) == 2 and fence[1] not in text
    assert parts(card(facts))[0]["pipeline_tag"] == "image-feature-extraction"


def test_notes_and_paths_of_a_report() -> None:
    stage = Stage(stage="original", heads=6, params=10, top1=50.0)
    report = Report(model="m", data="/home/me/secret/photos", images=3, stages=[stage], notes=["<img src=x>\n# no"])
    units, stages = {"heads": (6, 3), "mlp": (8, 4)}, {"before": stage, "after": stage}
    facts = CardFacts("me/x", "m", 2, "ab", (3, 8, 8), units, "head", report=report, **stages)
    body = parts(card(facts))[1]
    assert "3 images of photos" in body and "secret" not in body and r"\<img src=x>" in body
    assert not re.search(r"^# no", body, re.M) and "one mix a pair of blocks and head" in body


def test_a_data_set_of_the_hub_is_named(run: Path) -> None:
    from slimvit.config.recipe import Recipe
    from slimvit.workflows.push.contents import _dataset

    recipe = Recipe.read(run / "recipe.yaml")
    named = {"hfds/you/photos": "you/photos", "digits": None, "photos/": None, "torch/cifar10": None, "hfds/x": None}
    for name, wanted in named.items():
        data = recipe.data.model_copy(update={"name": name})
        assert _dataset(recipe.model_copy(update={"data": data})) == wanted
    assert timm.get_pretrained_cfg("deit_tiny_patch16_224").hf_hub_id.startswith("timm/")
