"""The Python API: every public function on a tiny model, through the code that a user reaches."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import slimvit
from slimvit.config.options import Options
from slimvit.config.recipe import FinetuneSection, Recipe
from slimvit.data.loaders import train_loader
from slimvit.data.preprocessing import preprocessing_of
from slimvit.data.sources import open_data
from slimvit.models.registry import plan_of
from slimvit.utils.errors import DataError, ModelError, PlanError, RecipeError, SlimvitError, StoreError

Batches = list[tuple[Tensor, Tensor]]
RECIPE = {
    "model": {"name": "vit_digits"},
    "data": {"name": "digits", "train_images": 64, "eval_images": 40},
    "prune": {"ratio": 0.5, "calibration_images": 32},
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "run"
    slimvit.run(Recipe.parse(RECIPE), Options(out=folder, device="cpu"))
    return folder


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the digits, a sixth: 240 images to learn from and 60 to measure on."""
    some = load_digits()
    some.images, some.target = some.images[:300], some.target[:300]
    monkeypatch.setattr("slimvit.data.digits._read_digits", lambda: some)


@pytest.fixture
def model(vit: Callable[..., Any]) -> Any:
    return vit(mlp_ratio=2)


@pytest.fixture
def calibration(model: Any, batches: Callable[..., Batches]) -> Batches:
    return batches(model)


# the names


def test_public_names() -> None:
    """A function each, also after the subpackages of the same name were imported; nothing heavy comes with them."""
    import slimvit.prune.surgery as surgery
    import slimvit.report.columns as columns

    assert surgery.prune_model is slimvit.prune_model and columns is slimvit.report.columns
    assert all(callable(getattr(slimvit, name)) for name in slimvit.__all__)
    assert {*slimvit.__all__} <= {*dir(slimvit)} and slimvit.__version__ == "0.1.0"
    assert "images" in inspect.signature(slimvit.prune).parameters
    with pytest.raises(AttributeError, match="module 'slimvit' has no attribute 'prun'"):
        slimvit.prun  # noqa: B018


def test_the_first_use_of_a_function_is_like_the_second() -> None:
    script = "import slimvit; first = slimvit.prune; import slimvit.prune.surgery; assert first is slimvit.prune"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_public_functions_are_documented() -> None:
    """A summary line, what goes in and an example; whatever is not a class."""
    for name in (
        "bench",
        "evaluate",
        "export",
        "load_into",
        "plan",
        "predict",
        "prune",
        "push",
        "report",
        "save",
        "sweep",
    ):
        text = inspect.getdoc(inspect.unwrap(getattr(slimvit, name))) or ""
        assert all(word in text for word in ("Args:", "Raises:", "Example:")), name
        assert text.splitlines()[0].endswith("."), name


# scores -> plan -> cut -> refit


@pytest.mark.parametrize(
    "budget",
    [{"target_macs": 0.8}, {"target_params": 0.8}, {"ratio": 0.5}, {"heads": 1}, {"ratio": 0.4, "mlp_ratio": 0.3}],
)
def test_step_by_step(budget: dict[str, Any], model: Any, calibration: Batches) -> None:
    scores = slimvit.score_parts(model, calibration, parts=("heads", "mlp"))
    plan = slimvit.plan(scores, model, **budget)
    small = slimvit.refit(slimvit.prune_model(model, plan), model, calibration)
    assert not plan.same_size(scores.plan)
    if "target_macs" in budget:
        assert slimvit.count_macs(small).total <= 0.8 * slimvit.count_macs(model).total
    assert slimvit.plan(scores, model, **budget) == plan


def test_one_call_is_the_steps(model: Any, calibration: Batches) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = slimvit.prune(model, calibration, ratio=0.5)
    scores = slimvit.score_parts(model, calibration)
    plan = slimvit.plan(scores, model, ratio=0.5)
    wanted = slimvit.refit(slimvit.prune_model(model, plan), model, calibration)
    assert result.plan == plan and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(tensor, wanted.state_dict()[name])
    original, pruned = result.figures["original"], result.figures["pruned"]
    assert pruned.macs < original.macs and pruned.units["heads"] == plan.kept_heads and pruned.feature_error > 0  # type: ignore[operator]
    assert (result.images, result.measured_on) == (12, "calibration images")
    assert len(repr(result).splitlines()) < 8 and "measured on 12 calibration images" in repr(result)


@pytest.mark.usefixtures("few_digits")
def test_one_call_is_the_command(run_folder: Path) -> None:
    """The same images and settings give the figures of `slimvit prune`."""
    state = slimvit.run(Recipe.parse(RECIPE | {"data": {"name": "digits"}}), Options(device="cpu"))
    result = slimvit.prune("vit_digits", "digits", ratio=0.5, calibration_images=32)
    assert result.measured_on == "validation images"
    fields = ("units", "params", "macs", "top1", "loss", "feature_error")
    assert [getattr(result.figures["pruned"], f) for f in fields] == [getattr(state.stages[-1], f) for f in fields]


def test_more_of_one_call(model: Any, calibration: Batches, images: Callable[..., Tensor]) -> None:
    """Rounds, dense attention, latency, images alone, validation batches, a criterion of one's own name."""
    result = slimvit.prune(
        model, images(model, 8), target_macs=0.8, steps=2, dense="layer", latency=True, validation=calibration,
        criterion="magnitude", refit="own",
    )  # fmt: skip
    assert result.measured_on == "validation images" and result.figures["pruned"].latency_ms > 0  # type: ignore[operator]
    assert any("mix" in name for name in result.model.state_dict())


@pytest.mark.usefixtures("few_digits")
def test_evaluate(model: Any, calibration: Batches) -> None:
    found = slimvit.evaluate(model, calibration, model)
    assert found.agreement == 100 and found.feature_error == 0 and found.macs == slimvit.count_macs(model).total
    assert slimvit.evaluate(model, iter(calibration)).loss == found.loss
    assert slimvit.evaluate(model, [x for x, _ in calibration]).top1 is None
    assert slimvit.evaluate("vit_digits", "digits").top1 > 90  # type: ignore[operator]


# the rest of the commands


def test_report_predict_push_and_export(run_folder: Path, tmp_path: Path, digit_folder: Callable[..., Path]) -> None:
    comparison = slimvit.report(run_folder, pick=["macs <= 0.99"], out=tmp_path / "report")
    assert comparison.rows and (tmp_path / "report" / "tradeoff.json").is_file()
    photos = digit_folder(tmp_path / "photos", classes=2, train=1, val=1)
    answers = slimvit.predict(run_folder, photos / "val")
    assert len(answers.guesses) == 2 and all(len(found) == 3 for found in answers.guesses.values())
    assert "model.safetensors" in slimvit.push(run_folder, "me/model", dry_run=True).files  # type: ignore[union-attr]
    found = slimvit.export(run_folder, tmp_path / "model.pt2", "torch-export", images=8)
    assert found["agreement"] == 100 and (tmp_path / "model.pt2").is_file()
    again = slimvit.export(slimvit.load(run_folder), tmp_path / "again.pt2", "torch-export", data="digits", images=8)
    assert again["bytes"] == found["bytes"]


@pytest.mark.usefixtures("quick_bench")
def test_bench(run_folder: Path) -> None:
    rows = slimvit.bench(run_folder, device="cpu", rounds=20, batches=(2,))
    assert [row.original for row in rows] == [None, rows[0].model] and rows[1].timing.latency_ms > 0  # type: ignore[operator]


def test_sweep(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("base: digits_half\ngrid: {prune.criterion: [magnitude, random]}\n")
    data = {"train_images": 32, "eval_images": 16}
    comparison = slimvit.sweep(tmp_path / "s.yaml", tmp_path / "out", Options(device="cpu"), data=data)
    assert comparison is not None and len(comparison.rows) == 3


@pytest.mark.usefixtures("few_digits")
def test_finetune() -> None:
    data = open_data(Recipe.parse(RECIPE).data)
    small: Any = slimvit.prune("vit_digits", "digits", ratio=0.5, calibration_images=16).model
    section = FinetuneSection(epochs=1)
    tuned, history = slimvit.finetune(small, train_loader(data.train, preprocessing_of(small), section, 32), section)
    assert len(history) == 1 and not torch.equal(tuned.head.weight, small.head.weight)


def test_backbone_dense_and_create_model() -> None:
    model = slimvit.create_model("deit_tiny_patch16_224", heads=2, img_size=32, args={"depth": 2})
    dense = slimvit.insert_dense_attention(model, "layer")
    assert [f.shape[1] for f in slimvit.backbone(dense)(torch.zeros(1, 3, 32, 32))] and slimvit.plan_units


# a model of one's own class


class OwnViT(VisionTransformer):
    """A user's model: timm's, with a layer more."""

    def __init__(self, width: int = 8, **kwargs: Any) -> None:
        super().__init__(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=5, **kwargs)
        self.extra = nn.Linear(48, width)


@pytest.mark.parametrize("dense", [None, "head"])
def test_a_model_of_ones_own_class(dense: str | None, tmp_path: Path) -> None:
    own = OwnViT().eval()
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    small = slimvit.prune(own, images, ratio=0.4, mlp_ratio=0.3, dense=dense, criterion="magnitude").model
    slimvit.save(small, tmp_path / "own", class_names=list("abcde"))
    with pytest.raises(StoreError, match=r"own: a model of your own class .*test_api.OwnViT, .*load_into\(model, "):
        slimvit.load(tmp_path / "own")
    back: Any = slimvit.load_into(OwnViT(), tmp_path / "own")
    assert type(back) is OwnViT and back.class_names == tuple("abcde") and not back.training
    assert torch.equal(back(images), small(images)) and torch.equal(back.extra.weight, own.extra.weight)
    with pytest.raises(StoreError, match=r"extra.weight has shape \[8, 48\], expected \[9, 48\]"):
        slimvit.load_into(OwnViT(width=9), tmp_path / "own")
    with pytest.raises(StoreError, match="the given model is pruned already; give a fresh, uncut one"):
        slimvit.load_into(back, tmp_path / "own")
    with pytest.raises(StoreError, match="does not fit the given VisionTransformer: the plan has 3 blocks"):
        other = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)
        slimvit.load_into(other, tmp_path / "own")


# wrong use, in one line


WRONG: dict[str, tuple[Callable[[Any, Batches], Any], type[SlimvitError], str]] = {
    "ratio": (
        lambda m, b: slimvit.prune(m, b, ratio=50),
        RecipeError,
        "prune.*ratio is 50.*, but must lie between 0 and 1",
    ),
    "no budget": (lambda m, b: slimvit.prune(m, b), RecipeError, "no budget; give target_macs"),
    "two budgets": (lambda m, b: slimvit.prune(m, b, ratio=0.5, target_macs=0.5), RecipeError, "were both given"),
    "budget": (lambda m, b: slimvit.prune(m, b, target_mac=0.5), RecipeError, "unknown key .*target_mac.*target_macs"),
    "criterion": (lambda m, b: slimvit.prune(m, b, ratio=0.5, criterion="residuall"), RecipeError, "residual"),
    "scope": (lambda m, b: slimvit.prune(m, b, ratio=0.5, scope="globl"), RecipeError, "scope is 'globl', but must be"),
    "part": (lambda m, b: slimvit.prune(m, b, target_macs=0.5, parts=["head"]), RecipeError, "parts.* is 'head', but"),
    "refit": (
        lambda m, b: slimvit.prune(m, b, ratio=0.5, refit="streem"),
        RecipeError,
        "refit.target is 'streem', but",
    ),
    "dense": (
        lambda m, b: slimvit.prune(m, b, ratio=0.5, dense="heads"),
        RecipeError,
        "dense.mix is 'heads', but must",
    ),
    "training": (lambda m, b: slimvit.prune(m, b, ratio=0.5, steps=2, step_epochs=1), RecipeError, "use slimvit.run"),
    "out of reach": (lambda m, b: slimvit.prune(m, b, target_macs=0.01), PlanError, "give a larger target"),
    "score a word": (
        lambda m, b: slimvit.score_parts(m, b, "residuall"),
        PlanError,
        "criterion 'residuall' is not known",
    ),
    "refit a word": (lambda m, b: slimvit.refit(m, m, b, "streem"), PlanError, "refit target 'streem' is not known"),
    "iterator": (lambda m, b: slimvit.prune(m, iter(b), ratio=0.5), DataError, "can be read only once"),
    "refit an iterator": (lambda m, b: slimvit.refit(m, m, iter(b)), DataError, "can be read only once"),
    "score an iterator": (lambda m, b: slimvit.score_parts(m, iter(b)), DataError, "can be read only once"),
    "no labels": (
        lambda m, b: slimvit.prune(m, [x for x, _ in b], ratio=0.5, criterion="fisher"),
        DataError,
        "needs labels",
    ),
    "labels": (
        lambda m, b: slimvit.score_parts(m, [(x, y + 9) for x, y in b], "taylor"),
        DataError,
        "has label 9, but",
    ),
    "evaluate labels": (lambda m, b: slimvit.evaluate(m, [(x, y + 9) for x, y in b]), DataError, "has label 9, but"),
    "channels": (lambda m, b: slimvit.refit(m, m, [x.movedim(1, 3) for x, _ in b]), DataError, "channels are last"),
    "size": (lambda m, b: slimvit.evaluate(m, [x[..., :16] for x, _ in b]), DataError, "images are 32x16 pixels"),
    "uint8": (lambda m, b: slimvit.score_parts(m, [x.byte() for x, _ in b]), DataError, "uint8; give float images"),
    "empty": (lambda m, b: slimvit.prune(m, [], ratio=0.5), DataError, "^no images: the batches are empty"),
    "refit nothing": (lambda m, b: slimvit.refit(m, m, []), DataError, "^no images: the batches are empty"),
    "folder": (lambda m, b: slimvit.prune(m, "photos", ratio=0.5), DataError, "photos: no such data folder"),
    "parallel": (
        lambda m, b: slimvit.prune(nn.DataParallel(m), b, ratio=0.5),
        ModelError,
        "pass the inner model: model.module",
    ),
    "compiled": (lambda m, b: slimvit.score_parts(torch.compile(m), b), ModelError, "model._orig_mod"),  # type: ignore[arg-type]
    "evaluate parallel": (lambda m, b: slimvit.evaluate(nn.DataParallel(m), b), ModelError, "model.module"),
    "save compiled": (lambda m, b: slimvit.save(torch.compile(m), "x"), ModelError, "model._orig_mod"),  # type: ignore[arg-type]
    "prune parallel": (lambda m, b: slimvit.prune_model(nn.DataParallel(m), b), ModelError, "model.module"),  # type: ignore[arg-type]
    "no model": (lambda m, b: slimvit.prune("vit_digit", b, ratio=0.5), ModelError, "vit_digit"),
    "scores of another": (
        lambda m, b: slimvit.plan(slimvit.score_parts(slimvit.prune(m, b, ratio=0.5).model, b), m, ratio=0.5),
        PlanError,
        "the scores are of another model, or of this one before",
    ),
    "units out of range": (
        lambda m, b: slimvit.plan_units(slimvit.score_parts(m, b), ratio=50),
        PlanError,
        "ratio is 50, but must lie between 0 and 1",
    ),
    "units scope": (
        lambda m, b: slimvit.plan_units(slimvit.score_parts(m, b), ratio=0.5, scope="globl"),
        PlanError,
        r"scope 'globl' is not known \(did you mean global",
    ),
    "finetune a list": (
        lambda m, b: slimvit.finetune(m, b, FinetuneSection(epochs=1)),  # type: ignore[arg-type]
        DataError,
        "loader is of type list; give a DataLoader",
    ),
    "finetune parallel": (
        lambda m, b: slimvit.finetune(nn.DataParallel(m), b, FinetuneSection(epochs=1)),  # type: ignore[arg-type]
        ModelError,
        "model.module",
    ),
    "scores lack a part": (
        lambda m, b: slimvit.plan(slimvit.score_parts(m, b), m, target_macs=0.6, parts=["mlp"]),
        PlanError,
        "needs scores of mlp",
    ),
}


def test_a_criterion_may_be_a_function(model: Any, calibration: Batches) -> None:
    """The last head of every block is worth least, so it goes first."""

    def later_is_cheaper(network: Any, batches: Batches) -> dict[str, list[torch.Tensor]]:
        assert sum(len(images) for images, _ in batches) > 0
        return {"heads": [-torch.arange(float(b.heads)) for b in plan_of(network).blocks]}

    plan = slimvit.prune(model, calibration, heads=1, criterion=later_is_cheaper).plan
    assert [b.kept_heads for b in plan.blocks] == [(0,)] * len(plan.blocks)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use(case: str, model: Any, calibration: Batches) -> None:
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message) as caught:
        call(model, calibration)
    assert "\n" not in str(caught.value)
