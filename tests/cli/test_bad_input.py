"""Bad input ends in one line that names the thing, with exit code 1 (2 for usage), and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import slimvit.workflows.pruning
import slimvit.workflows.state
from slimvit.cli import main
from slimvit.io.embedded import EMBEDDED

Invoke = Callable[..., Any]
DIGITS = ("prune", "vit_digits", "--data", "digits")
QUICK = (*DIGITS, "--eval-images", 20, "--calibration-images", 20)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(slimvit_: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command with --out; it must fail in one line, before any model is measured, and write nothing."""

    def too_late(*args: object, **kwargs: object) -> None:
        raise AssertionError("the long part began")

    monkeypatch.setattr(slimvit.workflows.state, "outputs_of", too_late)

    def run(*words: object, out: bool = True) -> str:
        before = {f: f.read_bytes() for f in work.rglob("*") if f.is_file()}
        result = slimvit_(*words, *(["--out", "new/run"] if out else []), code=1)
        assert result.stdout == "" and result.stderr.startswith("Error: "), result.output
        assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr, result.stderr
        assert {f: f.read_bytes() for f in work.rglob("*") if f.is_file()} == before
        assert not (work / "new").exists()
        return result.stderr

    return run


def use_up_the_disk(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# data


def test_no_such_data_folder(refused: Callable[..., str]) -> None:
    said = refused("prune", "vit_digits", "--data", "nowhere/", "--ratio", 0.5)
    assert "nowhere" in said and "no such data folder" in said and "train/CLASS/" in said
    assert "did you mean digits" in refused("prune", "vit_digits", "--data", "digit", "--ratio", 0.5)


@pytest.mark.parametrize(("gone", "named"), [("train", "no train/"), ("val", "no val/")])
def test_a_missing_split(refused: Callable[..., str], digit_folder: Any, work: Path, gone: str, named: str) -> None:
    data = digit_folder(work / "data", train=1, val=1)
    (data / gone).rename(data / "other")
    assert named in refused("prune", "vit_digits", "--data", data, "--ratio", 0.5)


def test_an_empty_class(refused: Callable[..., str], digit_folder: Any, work: Path) -> None:
    data = digit_folder(work / "data", train=1, val=1)
    (data / "train" / "empty").mkdir()
    assert f"{data}/train/empty: a class without images" in refused(
        "prune", "vit_digits", "--data", data, "--ratio", 0.5
    )


def test_other_classes_than_the_models(refused: Callable[..., str], digit_folder: Any, work: Path) -> None:
    data = digit_folder(work / "data", train=1, val=1)
    said = refused("prune", "vit_digits", "--data", data, "--ratio", 0.5)
    assert "10 classes" in said and "has 3" in said and "--adapt-epochs" in said
    said = refused("prune", "vit_digits", "--data", data, "--ratio", 0.5, "--num-classes", 3)
    assert "no classifier for 3 classes" in said and "--adapt-epochs" in said


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_unreadable_image(
    refused: Callable[..., str], digit_folder: Any, work: Path, slimvit_: Invoke, split: str
) -> None:
    data = digit_folder(work / "data", classes=10, train=2, val=2)
    bad = next((data / split / "4").iterdir())
    bad.write_bytes(bad.read_bytes()[:30])
    assert f"{bad}: not a readable image" in refused("prune", "vit_digits", "--data", data, "--ratio", 0.5)


def test_unreadable_images_are_left_out_when_asked(slimvit_: Invoke, digit_folder: Any, work: Path) -> None:
    data = digit_folder(work / "data", classes=10, train=2, val=3)
    for split in ("train", "val"):
        next((data / split / "4").iterdir()).write_bytes(b"no image")
    result = slimvit_("prune", "vit_digits", "--data", data, "--heads", 5, "--skip-bad-images", "--json")
    report = json.loads(result.stdout)
    assert report["images"] == 29 and report["calibration_images"] == 19
    assert report["notes"] == ["unreadable images left out (--skip-bad-images): 2"]


def test_evaluation_reads_no_training_images(slimvit_: Invoke, digit_folder: Any, work: Path) -> None:
    data = digit_folder(work / "data", classes=10, train=1, val=1)
    next((data / "train" / "4").iterdir()).write_bytes(b"no image")
    assert json.loads(slimvit_("evaluate", "vit_digits", "--data", data, "--json").stdout)["images"] == 10


def test_training_without_labels(refused: Callable[..., str], digit_folder: Any, work: Path) -> None:
    data = digit_folder(work / "data", train=2, val=2, labelled=False)
    base = ("prune", "vit_digits", "--data", data, "--ratio", 0.5)
    assert "has no labels" in refused(*base, "--adapt-epochs", 1)
    assert "without --no-distill" in refused(*base, "--finetune-epochs", 1, "--no-distill")
    for criterion in ("fisher", "taylor", "tp-taylor"):
        said = refused(*base, "--criterion", criterion)
        assert f"criterion {criterion} needs labels" in said and "use residual" in said and "--adapt" not in said
    said = refused(*QUICK, "--ratio", 0.5, "--criterion", "fisher", "--num-classes", 0)
    assert "has no classifier" in said and "--adapt-epochs" in said


# models and weights


def test_an_unknown_model(refused: Callable[..., str]) -> None:
    said = refused("prune", "deit_smal_patch16_224", "--data", "digits", "--ratio", 0.5)
    assert "did you mean deit_small_patch16_224" in said
    refused("inspect", "vit_digit", out=False)


def test_an_unsupported_model(refused: Callable[..., str]) -> None:
    said = refused("prune", "resnet18", "--no-pretrained", "--data", "digits", "--ratio", 0.5)
    assert "not a model slimvit can prune; supported:" in said


def test_no_network_and_no_weights(refused: Callable[..., str]) -> None:
    said = refused("prune", "deit_tiny_patch16_224", "--data", "digits", "--ratio", 0.5)
    assert "could not be fetched" in said and "--weights" in said and "--no-pretrained" in said


def test_weights_that_do_not_fit(refused: Callable[..., str], work: Path) -> None:
    base = ("prune", "deit_tiny_patch16_224", "--data", "digits", "--ratio", 0.5, "--weights")
    save_file({"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, work / "odd.safetensors")
    said = refused(*base, "odd.safetensors")
    assert "do not fit deit_tiny_patch16_224" in said and "blocks.0.attn" in said
    assert "no such weight file" in refused(*base, "gone.pth")
    (work / "text.pth").write_text("no weights")
    assert "text.pth: not a readable weight file" in refused(*base, "text.pth")


def test_a_saved_model_takes_no_other_weights(refused: Callable[..., str]) -> None:
    assert "drop --weights" in refused(*DIGITS, "--ratio", 0.5, "--weights", "x.pth")
    assert "drop --no-pretrained" in refused(*DIGITS, "--ratio", 0.5, "--no-pretrained")
    assert "drop --model-arg" in refused(*DIGITS, "--ratio", 0.5, "--model-arg", "depth=3")


def test_a_folder_that_is_no_run(refused: Callable[..., str], work: Path) -> None:
    (work / "empty").mkdir()
    assert "no saved model" in refused("prune", "empty", "--data", "digits", "--ratio", 0.5)
    assert "no folder of an earlier run" in refused("finetune", "empty", "--epochs", 1)
    assert "empty/report.json: no such report" in refused("report", "empty")


# budgets, plans, recipes


@pytest.mark.parametrize("ratio", [0, 1, 1.5, -1, "nan"])
def test_a_ratio_outside_its_bounds(refused: Callable[..., str], ratio: object) -> None:
    assert re.search(r"ratio is \S+, but must lie between 0 and 1", refused(*DIGITS, "--ratio", ratio))


def test_a_budget_that_removes_nothing_or_too_much(refused: Callable[..., str]) -> None:
    said = refused(*DIGITS, "--ratio", 0.01)
    assert "rounds to nothing" in said and "0.0139" in said
    assert "rounds to nothing" in refused(*DIGITS, "--ratio", 0.05, "--scope", "uniform")
    assert "min_heads" in refused(*DIGITS, "--ratio", 0.9)
    assert "removes nothing" in refused(*DIGITS, "--heads", 6)
    assert "1 stage" in refused(*DIGITS, "--heads", "2,3")
    assert "fewer than 0" in refused(*DIGITS, "--heads", -1)


def test_two_budgets(refused: Callable[..., str]) -> None:
    said = refused(*DIGITS, "--ratio", 0.5, "--heads", 3)
    assert "ratio and heads were both given" in said


def test_nothing_to_do(refused: Callable[..., str]) -> None:
    assert "nothing to do" in refused(*DIGITS)
    assert "needs a budget" in refused(*DIGITS, "--dry-run")


def test_macs_that_heads_alone_cannot_reach(refused: Callable[..., str], slimvit_: Invoke) -> None:
    alone = ("--parts", "heads", "--target-macs")
    least = re.search(r"heads alone cannot go below ([\d.]+) of the MACs", refused(*DIGITS, *alone, 0.1))
    assert least
    words = (*alone, least.group(1), "--criterion", "magnitude", "--dry-run", "--json")
    found = json.loads(slimvit_(*QUICK, *words).stdout)
    assert found["heads"] == [36, 6]


def test_a_plan_that_does_not_fit(refused: Callable[..., str], work: Path) -> None:
    def plan(kept: list[int], blocks: int = 6, heads: int = 6) -> Path:
        rows = [{"block": f"blocks.{i}", "heads": heads, "kept_heads": kept} for i in range(blocks)]
        (work / "plan.json").write_text(json.dumps({"format_version": 1, "blocks": rows}))
        return work / "plan.json"

    assert "the plan has 5 blocks" in refused(*DIGITS, "--plan", plan([0], blocks=5))
    assert "for 8 heads" in refused(*DIGITS, "--plan", plan([0], heads=8))
    assert "blocks.0: the plan keeps head 6" in refused(*DIGITS, "--plan", plan([6]))
    assert "removes nothing" in refused(*DIGITS, "--plan", plan(list(range(6))))
    (work / "plan.json").write_text("{")
    assert "not a readable plan" in refused(*DIGITS, "--plan", work / "plan.json")
    assert "no such plan file" in refused(*DIGITS, "--plan", "gone.json")


def test_a_recipe_with_defects(refused: Callable[..., str], work: Path) -> None:
    (work / "r.yaml").write_text("model: {name: vit_digits}\ndata: {name: digits}\nprune: {ration: 0.5, heads: x}\n")
    said = refused("run", "r.yaml")
    assert "unknown key prune.ration (did you mean ratio?)" in said and "prune.heads" in said
    assert "prune.ration" in refused("recipes", "check", "r.yaml", out=False)
    (work / "r.yaml").write_text("a: [")
    assert "not readable as YAML" in refused("run", "r.yaml")
    assert "did you mean digits_half" in refused("run", "digit_half")


def test_training_that_cannot_work(refused: Callable[..., str], work: Path) -> None:
    def recipe(finetune: str, batch_size: int = 8) -> Path:
        (work / "r.yaml").write_text(
            f"model: {{name: vit_digits}}\ndata: {{name: digits, batch_size: {batch_size}}}\n"
            f"prune: {{ratio: 0.5}}\nfinetune: {{epochs: 1, {finetune}}}\n"
        )
        return work / "r.yaml"

    assert "mix images in pairs, but a step has 5" in refused("run", recipe("mixup: 0.5", batch_size=5))
    assert "auto_augment is 'much'" in refused("run", recipe("auto_augment: much"))
    assert "no timm model" in refused("run", recipe("teacher: {name: nobody}"))


@pytest.mark.parametrize("option", ["--batch-size", "--eval-images", "--img-size", "--calibration-images"])
def test_numbers_that_must_be_positive(refused: Callable[..., str], option: str) -> None:
    assert re.search(rf"{option[2:].replace('-', '_')} is 0, but must be greater than 0", refused(*DIGITS, option, 0))


def test_options_of_inspect_are_checked_too(refused: Callable[..., str]) -> None:
    assert "model.img_size is -3" in refused("inspect", "vit_digits", "--img-size", -3, out=False)


def test_a_recipe_copy_that_cannot_be_written(refused: Callable[..., str], work: Path) -> None:
    (work / "there.yaml").touch()
    assert "exists" in refused("recipes", "copy", "digits_half", "there.yaml", out=False)
    assert "cannot be written" in refused("recipes", "copy", "digits_half", "no/folder.yaml", out=False)
    (work / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not a readable recipe" in refused("recipes", "show", "bytes.yaml", out=False)


def test_no_model_matches(refused: Callable[..., str]) -> None:
    assert "no model that slimvit can prune matches" in refused("models", "resnet*", out=False)
    assert "no model that slimvit can prune matches" in refused("models", "resnet*", "--embedded", out=False)


# where it runs and where it writes


def test_a_device_that_is_not_there(refused: Callable[..., str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    said = refused(*DIGITS, "--ratio", 0.5, "--device", "cuda")
    assert "device cuda: not on this machine; it has" in said and "cpu" in said


def test_an_output_folder_in_use(refused: Callable[..., str], work: Path) -> None:
    (work / "run").mkdir()
    (work / "run" / "mine.txt").write_text("mine")
    said = refused(*DIGITS, "--ratio", 0.5, "--out", "run", out=False)
    assert "in use" in said and "--force" in said
    assert "did not write" in refused(*DIGITS, "--ratio", 0.5, "--out", "run", "--force", out=False)
    assert "is a file" in refused(*DIGITS, "--ratio", 0.5, "--out", "run/mine.txt", out=False)
    assert "in use" in refused(*DIGITS, "--ratio", 0.5, "--dry-run", "--out", "run", out=False)


def test_a_run_does_not_write_over_what_it_reads(refused: Callable[..., str], work: Path) -> None:
    run = work / "run"
    slimvit.save(slimvit.load(EMBEDDED["vit_digits"]), run)
    said = refused("prune", "run", "--data", "digits", "--heads", 3, "--out", run, "--force", out=False)
    assert "this run reads run" in said


def test_a_full_disk(slimvit_: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for writer in (
        "slimvit.report.run.head_map.head_map",
        "slimvit.models.plan.SlimPlan.write",
        "slimvit.io.saved_model.save_file",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(writer, use_up_the_disk)
            result = slimvit_(*QUICK, "--heads", 5, "--refit", "none", "--out", "new", code=1)
        assert "Error: new: the disk is full" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
        assert list(work.iterdir()) == [] and result.stdout == ""


# usage


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("prun",), "No such command 'prun' (did you mean prune"),
        (("prune", "vit_digits", "--dta", "x"), "--data"),  # click's own words
        (("prune", "vit_digits", "--ratio", "0.5"), "Missing option '--data'"),
        (("evaluate", "vit_digits"), "Missing option '--data'"),
        (("prune",), "Missing argument 'MODEL'"),
        (("finetune", "runs/x"), "Missing option '--epochs'"),
        (("prune", "vit_digits", "--heads", "3,x"), "'3,x' is neither a number"),
        (("prune", "vit_digits", "--model-arg", "depth"), "'depth' is not KEY=VALUE"),
        (("prune", "vit_digits", "--criterion", "best"), "'best' is not one of"),
        (("prune", "vit_digits", "--workers", "-1"), "-1 is not in the range"),
        ((*DIGITS, "--ratio", "0.5", "--lr", "0.1"), "--lr does nothing without --finetune-epochs"),
        ((*DIGITS, "--ratio", "0.5", "--no-distill"), "--distill does nothing without --finetune-epochs"),
        ((*DIGITS, "--ratio", "0.5", "--adapt", "all"), "--adapt does nothing without --adapt-epochs"),
        (("recipes", "lost"), "No such command 'lost'"),
    ],
)
def test_usage(slimvit_: Invoke, work: Path, words: tuple[str, ...], said: str) -> None:
    result = slimvit_(*words, code=2)
    assert said in result.stderr.splitlines()[-1] and result.stderr.splitlines()[-1].startswith("Error: ")
    assert result.stdout == "" and list(work.iterdir()) == []


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(slimvit.workflows.pruning, "prune_model", broken)
    words = (*QUICK, "--heads", 5, "--out", "new")
    result = CliRunner().invoke(main, [str(w) for w in words])
    assert type(result.exception) is RuntimeError
    assert list(work.iterdir()) == []
