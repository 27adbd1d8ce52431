"""What slimvit can be extended with: each thing is added by one file, docs/extend/examples/NAME.py, and used."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import slimvit
from slimvit.config import choices

EXAMPLES = Path(__file__).parents[1] / "docs" / "extend" / "examples"


def add(name: str) -> ModuleType:
    """Import an example anew, as an installed plugin would be imported."""
    spec = importlib.util.spec_from_file_location(f"slimvit_example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the family and the format of an example out again."""
    from slimvit.io.export import formats
    from slimvit.models import registry

    monkeypatch.setattr(registry, "FAMILIES", [*registry.FAMILIES])
    monkeypatch.setattr(formats, "FORMATS", {**formats.FORMATS})
    monkeypatch.setattr(choices.EXPORT_FORMATS, "_words", {**choices.EXPORT_FORMATS._words})
    yield


@pytest.mark.usefixtures("unregistered")
def test_a_family(tmp_path: Path) -> None:
    """Pruned, made dense, fine-tuned, saved and loaded by a recipe, like any other."""
    from slimvit.measure.flops.count import count_macs
    from slimvit.models.registry import family_of, plan_of

    family = add("family")
    recipe = slimvit.Recipe.parse(
        {
            "model": {"name": "my_vit", "pretrained": False},
            "data": {"name": "digits", "train_images": 64, "eval_images": 32},
            "prune": {"target_macs": 0.6, "parts": ["heads", "mlp"], "calibration_images": 32},
            "dense": {"mix": "layer"},
            "finetune": {"epochs": 1, "distill": False},
        },
        "test",
    )
    slimvit.run(recipe, slimvit.Options(out=tmp_path / "run"))
    model = slimvit.load(tmp_path / "run")
    assert isinstance(model, family.MyViT) and family_of(model) is family.MY_VIT
    assert plan_of(model).model == "my_vit" and plan_of(model).removed_heads > 0 and plan_of(model).kept_neurons > 0
    whole = slimvit.create_model("my_vit", pretrained=False)
    assert count_macs(model).total <= 0.6 * count_macs(whole).total and count_macs(model).uncounted == ()


@pytest.mark.usefixtures("unregistered")
def test_an_export_format(tmp_path: Path, slimvit_: Callable[..., Any]) -> None:
    """Known to --format, compared with the model, and refused where the format says so."""
    from slimvit.models.registry import plan_of

    model = slimvit.load("vit_digits")
    slim = slimvit.prune_model(model, plan_of(model).keeping(heads=[[0, 3], [], *[[1, 2, 5]] * 4]))
    for name, one in (("slim", slim), ("dense", slimvit.insert_dense_attention(slim))):
        slimvit.save(one, tmp_path / name)

    def export(folder: str, *more: object, code: int = 0) -> Any:
        words = ("--data", "digits", "--eval-images", 32, "--out", tmp_path / "m.npz", *more)
        return slimvit_("export", tmp_path / folder, *words, code=code)

    assert "npz" not in export("slim", "--format", "npy", code=2).stderr
    add("export_format")
    assert "did you mean npz?" in export("slim", "--format", "npy", code=2).stderr
    assert "leave --batch and --dynamic-batch out" in export("slim", "--format", "npz", "--batch", 2, code=2).stderr
    assert "holds no dense attention" in export("dense", "--format", "npz", code=1).stderr
    assert "same best class: 100.00 %" in export("slim", "--format", "npz").stdout
    with np.load(tmp_path / "m.npz") as file:
        assert json.loads(file["about"].item())["model"] == "vit_digits"
        np.testing.assert_array_equal(file["head.bias"], model.head.bias.detach())


@pytest.fixture
def without_new_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the figure of the example out again."""
    from slimvit.measure import accuracy
    from slimvit.report import columns

    monkeypatch.setattr(accuracy, "FIGURES", {**accuracy.FIGURES})
    monkeypatch.setattr(columns, "METRICS", {**columns.METRICS})


@pytest.mark.usefixtures("without_new_figures")
def test_an_accuracy_figure(tmp_path: Path, slimvit_: Callable[..., Any]) -> None:
    """Measured by a run, and shown in its tables and in a comparison."""
    words = ("--data", "digits", "--train-images", 32, "--eval-images", 32, "--calibration-images", 32)
    add("accuracy_figure")
    printed = slimvit_("prune", "vit_digits", *words, "--ratio", 0.5, "--out", tmp_path / "run").stdout
    assert printed.splitlines()[1].split()[-3:-1] == ["error", "change"] and "calibration" in printed
    stages = json.loads((tmp_path / "run" / "report.json").read_text())["stages"]
    first, last = stages[0]["calibration_error"], stages[-1]["calibration_error"]
    assert 0 < first < 100 and 0 < last < 100 and first != last
    text = (tmp_path / "run" / "report.md").read_text()
    assert "| calibration error |" in text and f" {last:.1f} |" in text and "over ten bins, per cent" in text
    slimvit_("prune", "vit_digits", *words, "--ratio", 0.3, "--out", tmp_path / "other")
    compared = slimvit_("report", tmp_path / "run", tmp_path / "other", "--out", tmp_path / "compared").stdout
    assert "calibration" in compared and "calibration_error_std" in (tmp_path / "compared" / "tradeoff.csv").read_text()
    assert "calibration error" in (tmp_path / "compared" / "tradeoff.md").read_text()
    figures = json.loads(slimvit_("evaluate", "vit_digits", "--data", "digits", "--eval-images", 32, "--json").stdout)
    assert figures["calibration_error"] == first and "agreement" not in figures


def prune_digits(tmp_path: Path, model: str = "vit_digits", **prune: Any) -> Any:
    """The state at the end of a run, which wrote its folder to `run`."""
    recipe = slimvit.Recipe.parse(
        {
            "model": {"name": model},
            "data": {"name": "digits", "train_images": 64, "eval_images": 64},
            "prune": {"calibration_images": 32, **prune},
        },
        "test",
    )
    return slimvit.run(recipe, slimvit.Options(out=tmp_path / "run"))


@pytest.fixture
def pruning_unregistered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the criterion, the part and the budget of an example out again."""
    from slimvit.models.parts.registry import PARTS
    from slimvit.prune.costs.registry import BUDGETS
    from slimvit.prune.criteria.registry import CRITERIA

    for words in (choices.CRITERIA, choices.PARTS, choices.BUDGET_KINDS):
        monkeypatch.setattr(words, "_words", {**words._words})
    known = [(found, {**found}) for found in (PARTS, BUDGETS, CRITERIA)]
    yield
    for found, before in known:  # the dicts themselves are held by name in many modules
        found.clear()
        found.update(before)  # type: ignore[arg-type]


@pytest.mark.usefixtures("pruning_unregistered")
def test_a_criterion(tmp_path: Path) -> None:
    """Known to a recipe, and used by it for heads and neurons."""
    from slimvit.utils.errors import RecipeError

    with pytest.raises(RecipeError, match=r"prune\.criterion is 'wanda', but must be 'residual',"):
        prune_digits(tmp_path, target_macs=0.6, criterion="wanda")
    add("criterion")
    state = prune_digits(tmp_path, target_macs=0.6, parts=["heads", "mlp"], criterion="wanda")
    assert state.stages[-1].macs <= 0.6 * state.stages[0].macs
    assert state.scores is not None and state.scores.keys() == {"heads", "mlp"}
    assert min(score for rows in state.scores.values() for row in rows for score in row if score is not None) > 0


@pytest.mark.usefixtures("pruning_unregistered")
def test_a_part(tmp_path: Path) -> None:
    """Cut to a budget together with heads, saved, loaded by its plan, and refused where it is not known."""
    import torch

    from slimvit.io.saved_model import load_folder
    from slimvit.measure.flops.count import count_macs
    from slimvit.models.plan import SlimPlan
    from slimvit.models.registry import attention_blocks, plan_of
    from slimvit.utils.errors import StoreError

    add("part")
    state = prune_digits(tmp_path, target_macs=0.75, parts=["heads", "values"], criterion="magnitude")
    plan = plan_of(state.model)
    assert plan.removed_value_channels > 0 and plan.removed_heads > 0 and plan.kept_neurons == plan.neurons
    cut = [v.attn for v in attention_blocks(state.model) if v.attn.num_heads and v.attn.head_dim < v.attn.qk_dim]
    assert cut and all(attn.v_proj.out_features == attn.num_heads * attn.head_dim for attn in cut)
    count = count_macs(state.model)
    assert count.total <= 0.75 * count_macs(state.original).total
    assert count.without_norm == count.closed_form == count.torch_counter
    written = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert written["format_version"] == 3 and "kept_value_channels" in written["blocks"][0]
    assert SlimPlan.from_json(written).on(plan_of(state.original)) == plan
    again, images = load_folder(tmp_path / "run"), torch.randn(2, *count_size(state.model))
    assert torch.equal(again(images), state.model.eval()(images))
    whole = slimvit.prune_model(state.original, plan_of(state.original))
    uncut = plan_of(whole).keeping(value_channels=[range(b.value_channels - 2) for b in plan_of(whole).blocks])
    assert_zeroed_alike(whole, uncut)
    from slimvit.models.parts.registry import PARTS

    del PARTS["values"]
    with pytest.raises(StoreError, match="kept_value_channels: no part has units of that name"):
        load_folder(tmp_path / "run")


def count_size(model: Any) -> tuple[int, int, int]:
    from slimvit.measure.flops.count import input_size_of

    return input_size_of(model)


def assert_zeroed_alike(whole: Any, plan: Any) -> None:
    """The cut model computes what the whole one does when the columns of proj of the removed channels are zero."""
    import copy

    import torch

    masked = copy.deepcopy(whole)
    for block in masked.blocks:
        attn = block.attn
        with torch.no_grad():
            attn.proj.weight.view(-1, attn.num_heads, attn.head_dim)[:, :, -2:] = 0
    images = torch.randn(2, *count_size(whole))
    assert torch.allclose(slimvit.prune_model(whole, plan)(images), masked(images), atol=1e-5)


@pytest.mark.usefixtures("pruning_unregistered")
def test_a_kind_of_budget(tmp_path: Path, slimvit_: Callable[..., Any]) -> None:
    """Met by a recipe, forecast by a dry run, known to --target; a name that nobody knows is refused."""
    words = ("prune", "vit_digits", "--data", "digits", "--eval-images", 32, "--calibration-images", 32)
    refused = slimvit_(*words, "--target", "enrgy=0.6", code=1).stderr
    assert "prune.target.enrgy is 'enrgy', but must be 'macs', 'params' or 'latency'" in refused
    budget = add("budget")
    state = prune_digits(tmp_path, target={"energy": 0.6}, criterion="magnitude")
    assert 0.5 < budget.energy(state.model) / budget.energy(state.original) <= 0.6
    shown = slimvit_(*words, "--target", "energy=0.6", "--criterion", "magnitude", "--dry-run").stdout
    assert "energy (mJ) " in shown and "estimated for 45 nm" in shown
    far = slimvit_(*words, "--target", "energy=0.01", code=1).stderr
    assert "target-energy 0.01: heads and MLP neurons alone cannot go below" not in far or "of the energy" in far
