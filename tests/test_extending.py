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
    monkeypatch.setattr(choices.EXPORT_FORMATS, "_known", {**choices.EXPORT_FORMATS._known})
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
    slim = slimvit.prune_model(model, plan_of(model).keeping([[0, 3], [], *[[1, 2, 5]] * 4]))
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
