"""The main job, run for real on the embedded model and scikit-learn's digits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import slimvit
from slimvit.config.recipe import Recipe
from slimvit.data.loaders import eval_loader
from slimvit.data.preprocessing import preprocessing_of
from slimvit.data.sources import open_data

Invoke = Callable[..., Any]
FEW = ("--data", "digits", "--eval-images", 60, "--calibration-images", 64)
WRITTEN = {"model.safetensors", "slim.json", "recipe.yaml", "plan.json", "report.json", "report.md"}
WRITTEN |= {"head_map.png", "stages.png", "curves.png", "history.csv"}


def read(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())


def stages(run: Path) -> dict[str, dict[str, Any]]:
    return {s["stage"]: s for s in read(run)["stages"]}


def kept(run: Path) -> list[list[int]]:
    return [b["kept_heads"] for b in json.loads((run / "plan.json").read_text())["blocks"]]


def count(heads: list[list[int]]) -> int:
    return sum(map(len, heads))


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    return report | {"stages": [s | {"seconds": None} for s in report["stages"]]}


@pytest.fixture(scope="module")
def full(slimvit_: Invoke, drawing: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Half the heads, refit, an epoch of fine-tuning on few images: the folder, and what was printed."""
    out = tmp_path_factory.mktemp("full") / "run"
    words = ("--ratio", 0.5, "--finetune-epochs", 1, "--train-images", 96, "--batch-size", 32)
    with drawing():
        return out, slimvit_("prune", "vit_digits", *FEW, *words, "--out", out)


@pytest.fixture(scope="module")
def half(full: tuple[Path, Any]) -> Path:
    return full[0]


def test_a_run_leaves_everything_behind(full: tuple[Path, Any]) -> None:
    out, _ = full
    assert {f.name for f in out.iterdir()} == WRITTEN
    assert [f.name for f in out.parent.iterdir()] == ["run"]
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in out.glob("*.png"))
    assert (out / "history.csv").read_text().startswith("training,epoch,loss,lr,seconds,top1,")


def test_the_table_shows_the_report(full: tuple[Path, Any]) -> None:
    out, result = full
    assert list(stages(out)) == ["original", "pruned", "refit", "finetuned"]
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.split()}
    assert re.search(r"stage +heads +\(M\) +\(G\) +top-1", result.stdout)
    for name, stage in stages(out).items():
        top1, top5, agreement = stage["top1"], stage["top5"], stage["agreement"]
        wanted = [str(stage["heads"]), f"{stage['params'] / 1e6:.2f}", f"{stage['macs'] / 1e9:.3f}"]
        wanted += [f"{top1:.1f}", f"{top5:.1f}", f"{agreement:.1f}", f"{stage['feature_error']:.3f}"]
        assert rows[name][:7] == wanted
    assert f"run folder: {out}" in result.stdout
    assert "top-1" in (out / "report.md").read_text()


def test_the_report_says_what_was_run(half: Path) -> None:
    report = read(half)
    assert (report["model"], report["data"], report["images"], report["seed"]) == ("vit_digits", "digits", 60, 0)
    assert (report["ratio_asked"], report["ratio_reached"], report["calibration_images"]) == (0.5, 0.5, 64)
    assert report["versions"].keys() >= {"slimvit", "torch", "timm", "python"}
    original, pruned, refit, _ = report["stages"]
    assert (original["agreement"], original["feature_error"]) == (100.0, 0.0)
    assert pruned["heads"] == refit["heads"] == 18 and count(kept(half)) == 18
    assert pruned["params"] < original["params"] and pruned["macs"] < original["macs"]


def test_the_loaded_model_has_the_reported_accuracy(half: Path) -> None:
    recipe = Recipe.read(half / "recipe.yaml")
    model = slimvit.load(half)
    found = slimvit.evaluate(model, eval_loader(open_data(recipe.data).val, preprocessing_of(model), 64))
    assert found.top1 == pytest.approx(stages(half)["finetuned"]["top1"])
    assert found.loss == pytest.approx(stages(half)["finetuned"]["loss"], rel=1e-4)


def test_the_written_recipe_repeats_the_run(half: Path, slimvit_: Invoke, tmp_path: Path) -> None:
    slimvit_("run", half / "recipe.yaml", "--out", tmp_path / "again")
    assert without_times(read(tmp_path / "again")) == without_times(read(half))
    assert (tmp_path / "again" / "recipe.yaml").read_text() == (half / "recipe.yaml").read_text()
    assert kept(tmp_path / "again") == kept(half)


def test_an_existing_run_is_replaced_only_by_force(half: Path, slimvit_: Invoke, tmp_path: Path) -> None:
    words = ("prune", "vit_digits", *FEW, "--heads", 5, "--refit", "none", "--out", tmp_path / "run")
    slimvit_(*words)
    (tmp_path / "run" / "old").touch()
    slimvit_(*words, code=1)
    slimvit_(*words, "--force")
    assert not (tmp_path / "run" / "old").exists() and [f.name for f in tmp_path.iterdir()] == ["run"]
    assert list(stages(tmp_path / "run")) == ["original", "pruned"]


def test_half_the_heads_keep_the_accuracy(slimvit_: Invoke) -> None:
    words = ("--data", "digits", "--eval-images", 300, "--ratio", 0.5, "--json")
    report = json.loads(slimvit_("prune", "vit_digits", *words).stdout)
    original, pruned, refit = report["stages"]
    assert refit["feature_error"] < 0.5 * pruned["feature_error"]
    assert refit["top1"] >= pruned["top1"]
    assert refit["top1"] - 10 >= 0.97 * (original["top1"] - 10)


def test_a_slimmed_model_is_cut_again_by_original_ids(half: Path, slimvit_: Invoke, tmp_path: Path) -> None:
    slimvit_("prune", half, *FEW, "--ratio", 0.5, "--out", tmp_path / "again")
    assert count(kept(tmp_path / "again")) == 9
    assert all(set(now) <= set(before) for now, before in zip(kept(tmp_path / "again"), kept(half), strict=True))
    assert stages(tmp_path / "again")["original"]["heads"] == 18
    assert read(tmp_path / "again")["ratio_reached"] == 0.5
    assert slimvit.load(tmp_path / "again").slim_plan.heads == 36


def test_another_seed_draws_other_random_heads(slimvit_: Invoke, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        words = ("--ratio", 0.5, "--criterion", "random", "--dry-run", "--seed", seed)
        slimvit_("prune", "vit_digits", *FEW, *words, "--out", tmp_path / name)
    assert kept(tmp_path / "a") == kept(tmp_path / "c") != kept(tmp_path / "b")


def test_a_dry_run_only_plans(slimvit_: Invoke, tmp_path: Path) -> None:
    words = ("prune", "vit_digits", *FEW, "--ratio", 0.5, "--dry-run", "--finetune-epochs", 2, "--out")
    result = slimvit_(*words, tmp_path / "plan")
    printed = result.stdout
    assert re.search(r"scoring \d+ images by residual: 2.3 forward passes over them, \d+ s\n", result.stderr)
    assert [f.name for f in (tmp_path / "plan").iterdir()] == ["plan.json"]
    for i, heads in enumerate(kept(tmp_path / "plan")):
        assert f"blocks.{i}: keeps {','.join(map(str, heads))} of 6 heads" in printed
    assert re.search(r"heads +36 -> 18 +\(-50.0 %\)", printed) and re.search(r"FLOPs \(G\) +0\.\d+ -> 0\.\d+ ", printed)
    assert "estimated time (s): scores" in printed and "nothing was cut" in printed
    found = json.loads(slimvit_(*words, tmp_path / "plan2", "--json").stdout)
    assert found["heads"] == [36, 18] and found["macs"][1] < found["macs"][0]
    seconds = found["seconds"]
    assert seconds.keys() == {"adapt", "scores", "refit", "finetune", "evaluation", "total"} and seconds["total"] > 0
    assert [b["kept_heads"] for b in found["plan"]["blocks"]] == kept(tmp_path / "plan2") == kept(tmp_path / "plan")


def test_a_dry_run_speaks_of_what_is_gone(slimvit_: Invoke, tmp_path: Path) -> None:
    slimvit_("prune", "vit_digits", *FEW, "--ratio", 0.5, "--dry-run", "--out", tmp_path / "plan")
    file = tmp_path / "plan" / "plan.json"
    plan = json.loads(file.read_text())
    wanted = [([], "0-7,16-31"), ([0, 2], ""), ([], ""), ([1], "0-287"), ([1], ",".join(map(str, range(0, 60, 2))))]
    for block, (heads, neurons) in zip(plan["blocks"], wanted, strict=False):
        block["kept_heads"], block["kept_neurons"] = heads, neurons
    file.write_text(json.dumps(plan))
    printed = slimvit_("prune", "vit_digits", *FEW, "--plan", file, "--dry-run").stdout
    assert printed.startswith(
        "blocks.0: keeps 24 of 288 neurons (0-7,16-31); no heads left\n"
        "blocks.1: keeps 0,2 of 6 heads; no neurons left\n"
        "blocks.2: no heads and no neurons left\n"
        "blocks.3: keeps 1 of 6 heads, all 288 neurons\n"
        "blocks.4: keeps 1 of 6 heads, 30 of 288 neurons\n"
    )
    assert re.search(r"^neurons +1,728 -> 630 +\(-63.5 %\)$", printed, re.M)


def test_a_plan_edited_by_hand_is_carried_out_exactly(slimvit_: Invoke, tmp_path: Path) -> None:
    slimvit_("prune", "vit_digits", *FEW, "--ratio", 0.5, "--dry-run", "--out", tmp_path / "plan")
    file = tmp_path / "plan" / "plan.json"
    plan = json.loads(file.read_text())
    wanted = [[0], [1, 2], [0, 1, 2, 3, 4, 5], [3, 5], [2], [0, 4]]
    for block, heads in zip(plan["blocks"], wanted, strict=True):
        block["kept_heads"] = heads
    file.write_text(json.dumps(plan))
    slimvit_("prune", "vit_digits", *FEW, "--plan", file, "--out", tmp_path / "run")
    assert kept(tmp_path / "run") == wanted
    assert [b.attn.num_heads for b in slimvit.load(tmp_path / "run").blocks] == [1, 2, 6, 2, 1, 2]
    report = read(tmp_path / "run")
    assert (report["ratio_asked"], report["ratio_reached"]) == (None, round(22 / 36, 4))


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_a_mac_budget_is_met_and_not_overshot(slimvit_: Invoke, scope: str) -> None:
    words = ("--target-macs", 0.9, "--scope", scope, "--criterion", "magnitude", "--dry-run", "--json")
    found = json.loads(slimvit_("prune", "vit_digits", *FEW, *words).stdout)
    before, after = found["macs"]
    one_head = (before - after) / (36 - found["heads"][1])
    step = one_head if scope == "global" else 6 * one_head
    assert 0.9 - step / before < after / before <= 0.9


@pytest.mark.parametrize("words", [("--heads", 3), ("--ratio", 0.5, "--scope", "uniform")])
def test_every_block_keeps_three(slimvit_: Invoke, words: tuple[object, ...]) -> None:
    found = json.loads(slimvit_("prune", "vit_digits", *FEW, *words, "--dry-run", "--json").stdout)
    assert [len(b["kept_heads"]) for b in found["plan"]["blocks"]] == [3] * 6


def test_blocks_may_lose_their_attention(slimvit_: Invoke, tmp_path: Path) -> None:
    words = ("--ratio", 0.95, "--min-heads", 0, "--finetune-epochs", 1, "--train-images", 64)
    slimvit_("prune", "vit_digits", *FEW, *words, "--out", tmp_path / "run")
    assert count(kept(tmp_path / "run")) == 2 and [] in kept(tmp_path / "run")
    found = json.loads(slimvit_("evaluate", tmp_path / "run", "--json").stdout)
    assert found["top1"] == pytest.approx(stages(tmp_path / "run")["finetuned"]["top1"])
    assert re.search(r"^blocks\.\d +none left +all 288 ", slimvit_("inspect", tmp_path / "run").stdout, re.M)
    slimvit_("prune", tmp_path / "run", *FEW, "--heads", 0, "--min-heads", 0, "--out", tmp_path / "bare")
    assert count(kept(tmp_path / "bare")) == 0


def test_without_labels_only_features_are_reported(slimvit_: Invoke, digit_folder: Any, tmp_path: Path) -> None:
    data = digit_folder(tmp_path / "bare", labelled=False)
    words = ("--data", data, "--ratio", 0.5, "--finetune-epochs", 1)
    slimvit_("prune", "vit_digits", *words, "--out", tmp_path / "run")
    for name, stage in stages(tmp_path / "run").items():
        assert (stage["top1"], stage["top5"], stage["loss"]) == (None, None, None), name
        assert None not in (stage["feature_error"], stage["feature_cosine"], stage["agreement"]), name
    assert "top-1" not in (tmp_path / "run" / "report.md").read_text()
    assert stages(tmp_path / "run")["refit"]["feature_error"] < stages(tmp_path / "run")["pruned"]["feature_error"]


def test_without_a_classifier_only_features_are_reported(slimvit_: Invoke, tmp_path: Path) -> None:
    words = ("--num-classes", 0, "--ratio", 0.5, "--finetune-epochs", 1, "--train-images", 64)
    slimvit_("prune", "vit_digits", *FEW, *words, "--out", tmp_path / "run")
    for stage in stages(tmp_path / "run").values():
        assert (stage["top1"], stage["agreement"]) == (None, None) and stage["feature_error"] is not None
    assert slimvit.load(tmp_path / "run").num_classes == 0


@pytest.mark.parametrize("mode", ["head", "all"])
def test_a_classifier_for_other_classes_is_trained_first(
    slimvit_: Invoke, digit_folder: Any, tmp_path: Path, mode: str
) -> None:
    data = digit_folder(tmp_path / "three")
    words = ("--data", data, "--adapt-epochs", 10 if mode == "head" else 1, "--adapt", mode, "--ratio", 0.4)
    slimvit_("prune", "vit_digits", *words, "--batch-size", 16, "--out", tmp_path / "run")
    assert read(tmp_path / "run")["notes"][0].startswith("before the cut: classifier")
    assert stages(tmp_path / "run")["original"]["top1"] > 90
    assert (tmp_path / "run" / "history.csv").exists() == (mode == "all")
    original, small = slimvit.load(tmp_path / "run" / "original"), slimvit.load(tmp_path / "run")
    assert original.class_names == small.class_names == ("0", "1", "2")
    assert (original.num_classes, small.num_classes) == (3, 3)
    assert original.slim_plan.kept_heads == 36 and small.slim_plan.kept_heads == 22

    slimvit_("finetune", tmp_path / "run", "--epochs", 1, "--out", tmp_path / "tuned")
    assert yaml.safe_load((tmp_path / "tuned" / "recipe.yaml").read_text())["finetune"]["teacher"]["name"] == str(
        tmp_path / "run" / "original"
    )
    before, after = stages(tmp_path / "run"), stages(tmp_path / "tuned")
    assert after["original"]["loss"] == pytest.approx(before["original"]["loss"], rel=1e-4)
    assert after["pruned"]["loss"] == pytest.approx(before["refit"]["loss"], rel=1e-4)


def test_finetuning_learns_from_the_uncut_network(half: Path, slimvit_: Invoke, tmp_path: Path) -> None:
    result = slimvit_("finetune", half, "--epochs", 1, "--out", tmp_path / "tuned")
    assert list(stages(tmp_path / "tuned")) == ["original", "pruned", "finetuned"]
    before, after = stages(half), stages(tmp_path / "tuned")
    assert without_times({"stages": [after["original"]]}) == without_times({"stages": [before["original"]]})
    assert after["pruned"]["loss"] == pytest.approx(before["finetuned"]["loss"], rel=1e-4)
    assert kept(tmp_path / "tuned") == kept(half)
    assert "finetune epoch" in result.stderr and " 1/1 " in result.stderr
    slimvit_("run", tmp_path / "tuned" / "recipe.yaml", "--out", tmp_path / "again")
    assert without_times(read(tmp_path / "again")) == without_times(read(tmp_path / "tuned"))
    slimvit_("finetune", tmp_path / "tuned", "--epochs", 1, "--no-distill", "--out", tmp_path / "more")
    assert stages(tmp_path / "more")["original"]["heads"] == 36


def test_other_data_takes_nothing_over_from_the_run(
    half: Path, slimvit_: Invoke, digit_folder: Any, tmp_path: Path
) -> None:
    data = digit_folder(tmp_path / "ten", classes=10, train=12, val=11)
    found = json.loads(slimvit_("evaluate", half, "--data", data, "--json").stdout)
    assert found["images"] == 110 and found["data"] == str(data)
    own = json.loads(slimvit_("evaluate", half, "--json").stdout)
    assert own["images"] == 60 and own["top1"] == pytest.approx(stages(half)["finetuned"]["top1"])


def test_the_same_from_python(tmp_path: Path) -> None:
    recipe = Recipe.parse(
        {
            "model": {"name": "vit_digits"},
            "data": {"name": "digits", "eval_images": 50},
            "prune": {"heads": 4, "calibration_images": 32},
        }
    )
    now = slimvit.run(recipe)
    assert [s.stage for s in now.report.stages] == ["original", "pruned", "refit"]
    assert [b.attn.num_heads for b in now.model.blocks] == [4] * 6
    assert [b.attn.num_heads for b in now.original.blocks] == [6] * 6
