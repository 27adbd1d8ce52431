"""slimvit bench on the embedded models: what is timed beside what, what is kept, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import slimvit
from slimvit.io.embedded import EMBEDDED
from slimvit.measure.latency import timer
from slimvit.models.plan import SlimPlan
from slimvit.report.timing import read_timings
from slimvit.utils.errors import SlimvitError
from slimvit.workflows.bench import bench as bench_workflow
from slimvit.workflows.bench.bench import BenchOptions, bench_models
from slimvit.workflows.bench.models import open_bench_models

Invoke = Callable[..., Any]
FEW = ("--batches", 2, "--rounds", 20)


@pytest.fixture(scope="module")
def runs(slimvit_: Invoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """half/ (heads cut), dense/ (cut further and mixing) and swin/."""
    work = tmp_path_factory.mktemp("bench")
    few = ("--data", "digits", "--train-images", 32, "--eval-images", 20, "--calibration-images", 16)
    plain = (*few, "--criterion", "magnitude", "--refit", "none", "--out")
    slimvit_("prune", "vit_digits", "--ratio", 0.5, *plain, work / "half")
    slimvit_("prune", work / "half", "--heads", 2, "--dense", "layer", *plain, work / "dense")
    slimvit_("prune", "swin_digits", "--ratio", 0.5, *plain, work / "swin")
    return work


def test_a_run_is_timed_beside_its_original(slimvit_: Invoke, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer, "TURN", 0.0)
    result = slimvit_("bench", runs / "half", *FEW, "--threads", 1, "--json")
    original, half = json.loads(result.stdout)
    report = json.loads((runs / "half" / "report.json").read_text())
    assert (original["model"], original["original"]) == ("vit_digits (original)", None)
    assert (half["model"], half["original"]) == (str(runs / "half"), original["model"])
    for row, stage in ((original, report["stages"][0]), (half, report["stages"][-1])):
        assert (row["params"], row["macs"]) == (stage["params"], stage["macs"])
        assert row["latency_p95_ms"] >= row["latency_ms"] > 0 and row["throughput"] > 0
        assert 4 * row["params"] < row["peak_memory_gib"] * 2**30 < 2**30
        assert (row["batch"], row["rounds"], row["input_size"]) == (2, 20, report["input_size"])
        assert row["device"].endswith(", 1 thread")
    assert half["macs_speedup"] == pytest.approx(original["macs"] / half["macs"])
    for kind in ("latency", "throughput"):
        low, high = half[f"{kind}_interval"]
        assert low <= half[f"{kind}_speedup"] <= high and original[f"{kind}_speedup"] is None
    (kept,) = read_timings(runs / "half")
    assert kept.model_dump(mode="json") == {k: v for k, v in half.items() if k in type(kept).model_fields}


@pytest.mark.usefixtures("quick_bench")
def test_the_table_goes_to_stdout_and_the_rest_to_stderr(slimvit_: Invoke, runs: Path) -> None:
    result = slimvit_("bench", runs / "half", "--rounds", 20, "--no-save")
    assert "vit_digits (original)" in result.stdout and str(runs / "half") in result.stdout
    assert "eager, batch " in result.stdout and "fills it" in result.stderr


@pytest.mark.usefixtures("quick_bench")
def test_every_setting_has_its_rows_and_its_timings(
    slimvit_: Invoke, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(runs / "half", tmp_path / "run")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    words = ("bench", run, *FEW, "--precision", "fp32,bf16", "--eager", "--compile", "--json")
    rows = json.loads(slimvit_(*words).stdout)
    settings = [("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True)]
    assert [(r["precision"], r["compiled"]) for r in rows[1::2]] == settings
    assert [(t.precision, t.compiled) for t in read_timings(run)] == settings
    assert [r["peak_memory_gib"] for r in rows[::2]] == [1.0, None, 1.0, None]
    slimvit_("bench", run, *FEW, "--precision", "bf16", "--precision", "bf16")
    assert len(read_timings(run)) == 4


@pytest.mark.usefixtures("quick_bench")
def test_a_swin_compiled_alone(slimvit_: Invoke, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    words = ("bench", runs / "swin", *FEW, "--compile", "--no-save", "--json")
    original, slim = json.loads(slimvit_(*words).stdout)
    assert original["compiled"] and slim["compiled"] and original["macs_speedup"] is None
    assert original["model"] == slim["original"] == "swin_digits (original)" and slim["macs_speedup"] > 1


@pytest.mark.usefixtures("quick_bench")
def test_models_that_were_not_cut_are_only_timed(slimvit_: Invoke, runs: Path) -> None:
    before = {f: f.read_bytes() for f in EMBEDDED["vit_digits"].iterdir()}
    cut = [runs / "half", runs / "dense"]
    result = slimvit_("bench", "vit_digits", "test_vit", *cut, *FEW, "--no-save", "--json", "--precision", "bf16")
    rows = {row["model"]: row for row in json.loads(result.stdout)}
    assert list(rows) == ["vit_digits", "test_vit", *map(str, cut)]
    assert [row["original"] for row in rows.values()] == [None, None, "vit_digits", "vit_digits"]
    assert "different sizes" in result.stderr and "test_vit 3x160x160" in result.stderr
    assert {f: f.read_bytes() for f in EMBEDDED["vit_digits"].iterdir()} == before


def test_runs_of_one_original_share_it(runs: Path, tmp_path: Path) -> None:
    half, dense = runs / "half", runs / "dense"
    found = open_bench_models([str(half), str(dense)])
    assert [(c.name, c.original) for c in found] == [
        ("vit_digits (original)", None),
        (str(half), "vit_digits (original)"),
        (str(dense), "vit_digits (original)"),
    ]
    original = found[0]
    plain = slimvit.load(EMBEDDED["vit_digits"])
    assert {k: v.shape for k, v in original.model.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }
    assert original.folder is None and original.widths == (72,) * 6
    shutil.copytree(half, tmp_path / "moved")  # needs nothing outside its folder
    assert open_bench_models([str(tmp_path / "moved")])[0].macs == original.macs


def test_originals_of_one_name_are_told_apart(runs: Path, tmp_path: Path) -> None:
    model = slimvit.load(EMBEDDED["vit_digits"])
    model.reset_classifier(3)
    kept = SlimPlan.read(runs / "half" / "plan.json")
    slimvit.save(slimvit.prune_model(model, kept), tmp_path / "three")
    shutil.copy(runs / "half" / "recipe.yaml", tmp_path / "three")
    names = [c.name for c in open_bench_models([str(runs / "half"), str(tmp_path / "three")])]
    assert names[:2] == ["vit_digits (original)", f"vit_digits (original of {tmp_path / 'three'})"]


def test_the_input_size_is_that_of_all(runs: Path) -> None:
    found = open_bench_models([str(runs / "half"), "vit_digits"], img_size=48)
    assert {c.input_size[1:] for c in found} == {(48, 48)} and len(found) == 2


@pytest.mark.usefixtures("quick_bench")
def test_threads_are_given_back(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(bench_workflow, "_batch_size", lambda *_: seen.append(torch.get_num_threads()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench_models(["vit_digits"], BenchOptions(threads=before + 1))
    assert seen == [before + 1] and torch.get_num_threads() == before


# refused


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("nosuch_vit",), 1, "nosuch_vit: no timm model of that name"),
        (("vit_digits", "vit_digits"), 1, "vit_digits: was named before; name every model once"),
        (("vit_digits", EMBEDDED["vit_digits"]), 1, "was named before"),
        (("vit_digits", "--precision", "fp16"), 2, "'fp16' is not one of fp32, bf16"),
        (("vit_digits", "--rounds", 5), 2, "5 is not in the range x>=20"),
        (("vit_digits", "--batches", "0,2"), 2, "a batch has 1 image or more"),
        (("vit_digits", "--batches", "two"), 2, "neither a number nor numbers with commas"),
        (("vit_digits", "--threads", 0), 2, "0 is not in the range x>=1"),
        ((), 2, "Missing argument 'MODEL_OR_RUN...'"),
    ],
)
def test_bad_words(slimvit_: Invoke, words: tuple[object, ...], code: int, told: str) -> None:
    result = slimvit_("bench", *words, code=code)
    assert told in result.stderr and result.stdout == ""


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong is told before anything is timed."""
    monkeypatch.setattr(bench_workflow, "_batch_size", lambda *_: pytest.fail("it was timed"))


@pytest.mark.usefixtures("never")
def test_no_such_device(slimvit_: Invoke) -> None:
    if not torch.cuda.is_available():
        assert "device cuda: not on this machine" in slimvit_("bench", "vit_digits", "--device", "cuda", code=1).stderr


@pytest.mark.usefixtures("never")
def test_no_compiler(slimvit_: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_workflow, "compile_defect", lambda device: "InvalidCxxCompiler: none")
    told = slimvit_("bench", "vit_digits", "--compile", code=1).stderr
    assert "torch.compile does not work here: InvalidCxxCompiler: none; leave --compile out" in told


@pytest.mark.usefixtures("never")
def test_damaged_timings(slimvit_: Invoke, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "half", tmp_path / "run")
    (tmp_path / "run" / "timings.json").write_text("{")
    assert "damaged" in slimvit_("bench", tmp_path / "run", code=1).stderr


@pytest.mark.usefixtures("never")
def test_an_input_size_that_does_not_fit(slimvit_: Invoke) -> None:
    told = slimvit_("bench", "vit_digits", "--img-size", 1, code=1).stderr
    assert "vit_digits: --img-size 1 does not fit it: " in told


def test_a_batch_that_does_not_fit(slimvit_: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise bench_workflow.OutOfMemory

    monkeypatch.setattr(bench_workflow.InterleavedTimer, "calls", full)
    told = "the device's memory ends before 64 images; bench fewer or smaller models, or give smaller --batches"
    assert told in slimvit_("bench", "vit_digits", "--batches", 64, code=1).stderr
    with pytest.raises(SlimvitError, match="before 1 images"):
        bench_models(["vit_digits"], BenchOptions())
