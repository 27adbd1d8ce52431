"""Parity of exported files and models: every format, the embedded models cut in several ways, 540 validation images.

python benchmarks/export_parity.py
"""

from __future__ import annotations

import random
import sys
import tempfile
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch

import slimvit
from slimvit.config.recipe import DataSection, Recipe
from slimvit.data.loaders import eval_loader
from slimvit.data.preprocessing import preprocessing_of
from slimvit.data.sources import open_data
from slimvit.data.subsets import draw
from slimvit.io.embedded import EMBEDDED
from slimvit.models.registry import plan_of
from slimvit.utils.errors import ModelError
from slimvit.workflows.export import ExportOptions, export_model

RESULTS = Path(__file__).parent / "results" / "export_parity.md"
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "timm": ""}
PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime")
FORMS = [
    ("onnx", 8, False),
    ("onnx", None, False),
    ("onnx", None, True),
    ("torch-export", None, False),
    ("timm", None, False),
]
"""Format, batch (None: any), fp16."""


def cut(name: str, kind: str, dense: str | None, folder: Path) -> None:
    """Save an embedded model with about half of its heads and neurons, refitted.

    `even`: the same number in every block. `uneven`: different numbers, one attention and one MLP removed. `narrow
    MLPs`: only neurons, the same number in every block.
    """
    model, data, choose = slimvit.load(EMBEDDED[name]), open_data(DataSection(name="digits")), random.Random(0)
    plan, heads, neurons = plan_of(model), [], []
    for i, block in enumerate(plan.blocks):
        more = i % 3 if kind == "uneven" else 0
        heads.append(sorted(choose.sample(block.kept_heads, block.heads // 2 + more // 2)))
        neurons.append(sorted(choose.sample(block.kept_neurons, block.neurons // 2 - 8 * more)))
    if kind == "uneven":
        heads[1], neurons[2] = [], []
    images = eval_loader(draw(data.train, 256, seed=0), preprocessing_of(model), 64)
    slim = slimvit.prune_model(
        model, plan.keeping(neurons=neurons, **({} if kind == "narrow MLPs" else {"heads": heads}))
    )
    slim = slimvit.refit(slim, model, images)
    if dense is not None:
        slim = slimvit.insert_dense_attention(slim, dense)
        for name, parameter in slim.named_parameters():  # mixes after training are not 0
            if name.endswith("attn.mix"):
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    slimvit.save(slim.eval(), folder, class_names=data.class_names)


def row(folder: Path, what: list[str], form: str, batch: int | None, half: bool) -> str:
    recipe = Recipe.parse({"model": {"name": str(folder)}, "data": {"name": "digits"}}, "export_parity")
    cells = [*what, form, "any" if batch is None else str(batch), "fp16" if half else "fp32"]
    try:
        figures = export_model(recipe, ExportOptions(form, folder.parent / f"file{SUFFIXES[form]}", batch, half, True))
    except ModelError as error:
        return " | ".join(cells) + f" | refused: {str(error).partition(': ')[2].partition(';')[0]} | |"
    cells += [f"{figures['difference']:.1e}", f"{figures['agreement']:.2f} %", f"{figures['bytes']:,}"]
    return " | ".join(cells) + " |"


def main() -> None:
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    lines = [
        "# Exported files beside the models they were made from",
        "",
        f"`python benchmarks/export_parity.py`; {versions}. 540 validation images of the digits, on the CPU. Heads and "
        "neurons are halved and refitted; `uneven` lost a whole attention and a whole MLP too; mixes are drawn from "
        "N(0, 0.1). Difference: the largest of a logit, over the largest logit.",
        "",
        "| model | blocks | dense | format | batch | precision | difference | same top-1 | bytes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, kind, dense in product(EMBEDDED, ("even", "uneven", "narrow MLPs"), (None, "layer", "head")):
        if kind == "narrow MLPs" and dense is not None:
            continue
        with tempfile.TemporaryDirectory() as work:
            cut(name, kind, dense, Path(work) / "model")
            for form in FORMS:
                lines.append(f"| {row(Path(work) / 'model', [name, kind, dense or '-'], *form)}")
                print(lines[-1], file=sys.stderr, flush=True)
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
