"""Many images, few and many classes: memory does not grow with the images, whatever there are of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

FEW, MANY = 2_000, 100_000
STRESS = pytest.mark.skipif("SLIMVIT_STRESS" not in os.environ, reason="takes minutes; make stress")
PROGRAM = """
import sys
from slimvit.cli import main
from slimvit.measure.latency.peak_memory import process_peak
main(sys.argv[1:], standalone_mode=False)
print(process_peak(), file=sys.stderr)
"""


def folder_of(root: Path, images: int, classes: int) -> Path:
    """``images`` in train/ and as many in val/: the same few files under many names."""
    for split in ("train", "val"):
        for c in range(classes):
            folder = root / split / f"class {c:04d}"
            folder.mkdir(parents=True)
            Image.linear_gradient("L").resize((8, 8)).rotate(90 * c).point(lambda v, c=c: (v + c) % 256).save(
                folder / "0.png"
            )
            for i in range(1, images // classes):
                os.link(folder / "0.png", folder / f"{i}.png")
    return root


def peak(*words: object) -> int:
    """Bytes that a process of its own held at most while it carried out a command."""
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.splitlines()[-1])


@STRESS
@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "vit_digits", "--eval-images"),
        ("evaluate", "vit_digits", "--workers", 2, "--eval-images"),
        ("inspect", "vit_digits", "--calibration-images"),
    ],
)
def test_memory_does_not_grow_with_the_images(command: tuple[object, ...], tmp_path: Path) -> None:
    """Evaluation keeps a row of features and of class scores an image, 330 bytes here; scores keep sums."""
    data = folder_of(tmp_path / "many", MANY, 10)
    few, many = (peak(*command, n, "--data", data) for n in (FEW, MANY))
    print(f"{command}: {few / 2**20:.0f} MiB with {FEW:,} images, {many / 2**20:.0f} with {MANY:,}")
    assert many - few < 2_000 * MANY  # the tokens of one image take 19,000 bytes


@pytest.mark.parametrize("classes", [2, 1000])
def test_few_and_many_classes(classes: int, tmp_path: Path, slimvit_: Callable[..., Any]) -> None:
    data = folder_of(tmp_path / "photos", 2 * classes, classes)
    few = ("--data", data, "--calibration-images", 16, "--eval-images", 64, "--train-images", 64)
    out = tmp_path / "run"
    slimvit_("prune", "vit_digits", *few, "--ratio", 0.5, "--adapt-epochs", 1, "--finetune-epochs", 1, "--out", out)
    report = json.loads((out / "report.json").read_text())
    assert [(s["top5"] is None) for s in report["stages"]] == [classes == 2] * len(report["stages"])
    names = json.loads((out / "slim.json").read_text())["class_names"]
    assert names == [f"class {c:04d}" for c in range(classes)]
    image = data / "val" / "class 0001" / "0.png"
    (guesses,) = json.loads(slimvit_("predict", out, image, "--json").stdout)[str(out)]["guesses"].values()
    assert {name for name, _ in guesses} <= set(names) and len(guesses) == min(3, classes)
