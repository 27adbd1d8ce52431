"""slimvit export: what is written computes what the model does and says what it is; what differs does not stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import slimvit
from slimvit.data.folder import open_folder
from slimvit.data.loaders import eval_loader
from slimvit.data.preprocessing import preprocessing_of
from slimvit.io.export import onnx_file, timm_folder
from slimvit.io.export.exported_model import exported_model
from slimvit.io.export.formats import FORMATS
from slimvit.io.export.parity import MIXED, batches_of, output_parity
from slimvit.measure.flops.count import count_macs
from slimvit.measure.flops.parts import count_params
from slimvit.measure.latency import timer
from slimvit.models.registry import plan_of
from slimvit.utils.errors import ModelError
from slimvit.workflows import export as export_workflow
from slimvit.workflows.bench import bench

Invoke = Callable[..., Any]
CLASSES = [f"digit{i}" for i in range(3)]
VIT = ("vit_tiny_patch16_224", {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 3})
SWIN = (
    "swin_tiny_patch4_window7_224",
    {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "num_classes": 3},
)


@pytest.fixture(scope="module")
def built(randomise: Callable[..., Any]) -> Callable[..., Any]:
    """A small model that keeps these heads and neurons (all where None is given), dense where asked."""

    def build(
        kind: tuple[str, dict[str, Any]], heads: Any = None, neurons: Any = None, dense: str | None = None
    ) -> Any:
        whole = randomise(slimvit.create_model(kind[0], pretrained=False, args=kind[1]))
        model = slimvit.prune_model(whole, plan_of(whole).keeping(heads=heads, neurons=neurons))
        return (model if dense is None else slimvit.insert_dense_attention(model, dense, "normal")).eval()

    return build


@pytest.fixture(scope="module")
def work(built: Callable[..., Any], digit_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/; vit/ and swin/: uneven, dense, an MLP gone, an attention too; even/: a Swin that timm can build."""
    work = tmp_path_factory.mktemp("export")
    digit_folder(work / "data", train=1, val=8)
    models = {
        "vit": built(VIT, [[0, 1, 3], [1, 3]], [range(90), []], "head"),
        "swin": built(SWIN, [[0, 1], [1], []], [range(64), [], range(9)], "layer"),
        "even": built(SWIN, [[1], [0], [1, 2, 3]], [range(9), range(5, 14), range(60)]),
    }
    for name, model in models.items():
        slimvit.save(model, work / name, class_names=CLASSES)
    return work


@pytest.fixture(scope="module")
def export(slimvit_: Invoke, work: Path) -> Invoke:
    """Export a folder of ``work`` on its data; the figures."""

    def run(name: str, form: str, out: Path, *words: object) -> Any:
        command = ("export", work / name, "--format", form, "--data", work / "data", "--out", out, "--json", *words)
        return json.loads(slimvit_(*command).stdout)

    return run


@pytest.fixture(scope="module")
def images(work: Path) -> Tensor:
    """The validation images, as the models see them."""
    prep = preprocessing_of(slimvit.load(work / "vit"))
    return torch.cat([x for x, _ in eval_loader(open_folder(work / "data", "train", "val")[1], prep, 8)])


@pytest.fixture(scope="module")
def vit_onnx(export: Invoke, work: Path) -> tuple[Path, Any]:
    path = work / "files" / "vit.onnx"  # a folder that is not there yet
    return path, export("vit", "onnx", path, "--dynamic-batch")


def logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


def says_nothing_of_this_machine(file: Path) -> bool:
    """No path of the modules that the model's code lies in."""
    places = (Path(timm.__file__).parent, Path(slimvit.__file__).parent)
    return not any(str(place).encode() in file.read_bytes() for place in places)


# what is written


def test_onnx_needs_no_slimvit(vit_onnx: tuple[Path, Any], work: Path, images: Tensor, gap: Any) -> None:
    import onnxruntime

    path, figures = vit_onnx
    assert figures["batch"] is None and figures["batches"] == list(MIXED) and figures["images"] == len(images) == 24
    assert figures["difference"] <= 1e-5 and figures["agreement"] == 100 and figures["bytes"] == path.stat().st_size
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape[1:], i.type) for i in session.get_inputs()] == [("images", [3, 32, 32], "tensor(float)")]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    model = slimvit.load(work / "vit")
    for n in (1, 2, 24):
        (found,) = session.run(["logits"], {"images": images[:n].numpy()})
        assert gap(torch.from_numpy(found), logits(model, images[:n])) <= 1e-5
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == CLASSES and about["slimvit_version"] == version("slimvit")
    assert json.loads(about["preprocessing"]) == preprocessing_of(model).to_json()
    assert (int(about["params"]), int(about["macs"])) == (count_params(model), count_macs(model).total)
    assert [f.name for f in path.parent.iterdir()] == [path.name] and says_nothing_of_this_machine(path)


def test_onnx_of_one_batch_size(export: Invoke, slimvit_: Invoke, tmp_path: Path, images: Tensor) -> None:
    figures = export("swin", "onnx", tmp_path / "s.onnx", "--batch", 5)
    assert figures["batches"] == [5] and figures["difference"] <= 1e-5 and figures["agreement"] == 100
    file = onnx_file.load_onnx(tmp_path / "s.onnx")
    assert file.batch == 5 and file(images[:5]).shape == (5, 3)
    told = slimvit_("bench", tmp_path / "s.onnx", code=1).stderr
    assert "takes 5 images at a time, but one and growing batches are timed; export it with --dynamic-batch" in told


def test_torch_export_in_half_precision(export: Invoke, work: Path, tmp_path: Path, images: Tensor, gap: Any) -> None:
    figures = export("vit", "torch-export", tmp_path / "v.pt2", "--fp16", "--dynamic-batch")
    assert 1e-5 < figures["difference"] < 2e-2
    label = {"slimvit.json": ""}
    program = torch.export.load(tmp_path / "v.pt2", extra_files=label)
    assert {p.dtype for p in program.parameters()} == {torch.float16}
    found = logits(program.module(), images)
    assert found.dtype == torch.float32
    assert gap(found, logits(slimvit.load(work / "vit"), images)) == pytest.approx(figures["difference"], rel=1e-3)
    assert json.loads(label["slimvit.json"])["precision"] == "fp16"
    assert says_nothing_of_this_machine(tmp_path / "v.pt2")


def test_plain_timm_reads_a_narrower_swin(export: Invoke, work: Path, tmp_path: Path, images: Tensor) -> None:
    figures = export("even", "timm", tmp_path / "even")
    model = timm.create_model(f"local-dir:{tmp_path / 'even'}", pretrained=True).eval()
    assert {type(m).__module__.split(".")[0] for m in model.modules()} <= {"timm", "torch"}
    ours = slimvit.load(work / "even")
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}
    assert torch.equal(logits(model, images), logits(ours, images)) and figures["difference"] == 0
    assert list(model.pretrained_cfg["label_names"]) == CLASSES
    assert preprocessing_of(model) == preprocessing_of(ours)
    export("even", "timm", tmp_path / "even", "--force", "--fp16")
    assert json.loads((tmp_path / "even" / "export.json").read_text())["precision"] == "fp16"


def test_plain_timm_reads_a_vit_with_narrower_mlps(built: Callable[..., Any], tmp_path: Path, images: Tensor) -> None:
    exported = exported_model(built(VIT, None, [range(71), range(1, 72)]), CLASSES, None)
    timm_folder.check_plain(exported)
    timm_folder.write_timm_folder(exported, tmp_path)
    assert output_parity(exported.model, timm_folder.load_timm_folder(tmp_path), images, None).difference == 0


@pytest.mark.parametrize(
    ("kind", "heads", "neurons", "dense", "told"),
    [
        (VIT, [[0, 1]] * 2, None, None, "blocks.0 keeps 2 of 4 heads, and the heads of a plain timm ViT share out"),
        (VIT, None, [range(8), range(16)], None, "blocks.1 and blocks.0 differ in their number of neurons"),
        (VIT, None, [range(8), []], None, "blocks.1 lost the whole MLP"),
        (VIT, None, None, "layer", "plain timm knows no dense attention"),
        (SWIN, [[0], [0, 1], [0]], None, None, "layers.0.blocks.1 and layers.0.blocks.0 differ"),
        (SWIN, [[], [], [0]], None, None, "layers.0.blocks.0, layers.0.blocks.1 lost the whole attention"),
    ],
)
def test_what_plain_timm_cannot_build(
    built: Callable[..., Any], kind: Any, heads: Any, neurons: Any, dense: Any, told: str
) -> None:
    with pytest.raises(ModelError) as error:
        timm_folder.check_plain(exported_model(built(kind, heads, neurons, dense), (), None))
    assert told in str(error.value) and str(error.value).endswith("slimvit.load") and "\n" not in str(error.value)


# what does not stay


@pytest.mark.parametrize("wrong", [lambda x: torch.zeros(len(x), 3), lambda x: torch.full((len(x), 3), torch.nan)])
def test_a_file_that_computes_something_else_is_removed(
    slimvit_: Invoke, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    """And what was there before stays."""
    liar = replace(FORMATS["torch-export"], write=lambda _, path: path.write_text("new"), load=lambda path: wrong)
    monkeypatch.setitem(FORMATS, "torch-export", liar)
    (out := tmp_path / "m.pt2").write_text("old")
    words = ("export", work / "vit", "--format", "torch-export", "--data", work / "data", "--out", out, "--force")
    told = slimvit_(*words, code=1).stderr
    assert told.startswith(f"Error: {out}: not written, because its logits differ") and told.count("\n") == 1
    assert out.read_text() == "old" and [f.name for f in tmp_path.iterdir()] == ["m.pt2"]


@pytest.mark.parametrize("n", [1, 20, 24])
def test_batches(n: int) -> None:
    images = torch.arange(n)
    for batch in (None, 1, 5):
        found = batches_of(images, batch)
        assert {len(b) for b in found} == ({batch} if batch else set(MIXED))
        assert torch.cat(found)[:n].equal(images) and set(torch.cat(found).tolist()) == set(range(n))


def test_agreement_counts_every_image_once() -> None:
    images = torch.arange(3.0)[:, None, None, None]

    def logits(x: Tensor) -> Tensor:
        return torch.stack([x.flatten(), 1 - x.flatten()], 1)

    def other_for_the_last(x: Tensor) -> Tensor:
        return torch.where(x.flatten()[:, None] == 2, logits(x).flip(1), logits(x))

    found = output_parity(logits, other_for_the_last, images, 2)
    assert (found.images, found.batches) == (3, (2,)) and found.agreement == pytest.approx(200 / 3)


# refused before anything is opened


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_workflow, "open_run", lambda *_: pytest.fail("it began"))


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--format", "onnx", "--out", "m.pt2"), 1, "m.pt2: the file's name must end in .onnx"),
        (("--format", "onnx", "--out", "there.onnx"), 1, "there.onnx: exists; name another file, or add --force"),
        (("--format", "torch-export", "--out", "f.pt2", "--force"), 1, "f.pt2: is a folder"),
        (("--format", "timm", "--out", "vit", "--force"), 1, "this run reads"),
        (("--format", "timm", "--out", "data", "--force"), 1, "holds files that slimvit did not write"),
        (("--format", "timm", "--out", "t", "--batch", 2), 2, "a model for timm takes any number of images"),
        (("--format", "onnx", "--out", "m.onnx", "--batch", 2, "--dynamic-batch"), 2, "contradict each other"),
        (("--format", "onnx"), 2, "Missing option '--out'"),
        (("--format", "tflite", "--out", "m"), 2, "'tflite' is not one of 'onnx', 'torch-export' or 'timm'"),
    ],
)
def test_bad_words(
    slimvit_: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...], code: int, told: str
) -> None:
    monkeypatch.chdir(work)
    (work / "there.onnx").touch()
    (work / "f.pt2").mkdir(exist_ok=True)
    assert told in slimvit_("export", "vit", "--data", "data", *words, code=code).stderr


@pytest.mark.usefixtures("never")
def test_no_saved_model_and_no_data(slimvit_: Invoke, work: Path, tmp_path: Path) -> None:
    words = ("--format", "torch-export", "--out", tmp_path / "m.pt2")
    assert (
        "deit_tiny_patch16_224: no run folder"
        in slimvit_("export", "deit_tiny_patch16_224", "--data", "digits", *words, code=1).stderr
    )
    assert "Missing option '--data'" in slimvit_("export", work / "vit", *words, code=2).stderr


@pytest.mark.usefixtures("never")
def test_missing_packages(slimvit_: Invoke, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    words = ("export", work / "vit", "--data", work / "data", "--format", "onnx", "--out", tmp_path / "m.onnx")
    assert "ONNX needs onnxscript, not installed here; pip install 'slimvit[onnx]'" in slimvit_(*words, code=1).stderr


def test_no_classifier(slimvit_: Invoke, work: Path, tmp_path: Path) -> None:
    model = slimvit.load(work / "vit")
    model.reset_classifier(0)
    slimvit.save(model, tmp_path / "run")
    words = ("--data", work / "data", "--format", "torch-export", "--out", tmp_path / "m.pt2")
    assert "has no classifier, so there are no logits" in slimvit_("export", tmp_path / "run", *words, code=1).stderr


def test_an_onnx_file_ends_at_2_gib(built: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    exported = exported_model(built(VIT), (), 1)
    size = sum(4 * p.numel() for p in exported.model.parameters())
    monkeypatch.setattr(onnx_file, "MOST_BYTES", size - 1)
    onnx_file.check_size(replace(exported, half=True))
    with pytest.raises(ModelError, match="a file holds less than 2; use --fp16, or --format torch-export"):
        onnx_file.check_size(exported)


# slimvit bench


def test_a_file_is_timed_beside_models(
    slimvit_: Invoke, vit_onnx: tuple[Path, Any], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timer, "TURN", 0.0)
    monkeypatch.setattr(bench, "peak_on_cpu", lambda *_: 2**30)
    path = vit_onnx[0]
    words = ("bench", path, work / "vit", "--batches", 2, "--rounds", 20, "--no-save", "--device", "cpu")
    result = slimvit_(*words, "--precision", "fp32,bf16", "--json")
    rows = json.loads(result.stdout)
    original = "vit_tiny_patch16_224 (original)"
    names = [original, str(work / "vit"), str(path), original, str(work / "vit")]
    assert [r["model"] for r in rows] == names
    mine, theirs = rows[2], rows[1]
    assert (mine["macs"], mine["params"], mine["precision"]) == (theirs["macs"], theirs["params"], "fp32")
    assert mine["latency_ms"] > 0 and mine["throughput"] > 0 and mine["original"] is None
    assert "onnxruntime" in mine["versions"] and "onnxruntime" not in theirs["versions"]
    assert f"{path}: ONNX Runtime runs a file on the CPU" in result.stderr and "not timed among bf16" in result.stderr


def test_a_file_of_somebody_else_has_no_known_cost(
    slimvit_: Invoke, vit_onnx: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    monkeypatch.setattr(timer, "TURN", 0.0)
    monkeypatch.setattr(bench, "peak_on_cpu", lambda *_: 2**30)
    file = onnx.load(vit_onnx[0])
    file.ClearField("metadata_props")
    onnx.save(file, tmp_path / "m.onnx")
    words = ("bench", tmp_path / "m.onnx", "--batches", 2, "--rounds", 20)
    (row,) = json.loads(slimvit_(*words, "--json").stdout)
    assert row["macs"] is None and row["params"] is None and row["precision"] == "as written"
    assert "m.onnx" in slimvit_(*words).stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--compile",), "uncompiled; add --precision fp32 and --eager"),
        (("--precision", "bf16"), "in the precision it was written in"),
        (("--img-size", 64), "takes images of 32x32 pixels alone; drop --img-size 64"),
    ],
)
def test_bench_settings_that_a_file_does_not_have(
    slimvit_: Invoke, vit_onnx: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...], told: str
) -> None:
    monkeypatch.setattr(bench, "compile_defect", lambda device: None)
    assert told in slimvit_("bench", vit_onnx[0], *words, code=1).stderr


def test_bench_refuses_what_is_no_model(slimvit_: Invoke, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("no protobuf")
    assert "m.onnx: no ONNX file that ONNX Runtime can run" in slimvit_("bench", tmp_path / "m.onnx", code=1).stderr
    assert "gone.onnx: no such file" in slimvit_("bench", tmp_path / "gone.onnx", code=1).stderr
