"""Two real processes do what one does, and one of them writes."""

from __future__ import annotations

import csv
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import slimvit
from slimvit.data.preprocessing import preprocessing_of

SCRIPT = Path(__file__).parent / "distributed_run.py"
RECIPE: dict[str, Any] = {
    "model": {"name": "vit_digits"},
    "data": {"name": "digits", "train_images": 136, "eval_images": 61},
    "prune": {"ratio": 0.5, "calibration_images": 37},
    "dense": {"mix": "layer"},
    "finetune": {"epochs": 2, "lr": 1e-4, "accumulate": 2},
}
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip
"""accelerate's way to several processes on one machine; the script then asks for the CPU."""


def prepared(where: Path, batch: int) -> tuple[Path, Path, Path]:
    """The arguments of the script for a run in the new folder ``where``: recipe, run folder, and where it tells."""
    where.mkdir()
    (where / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"data": RECIPE["data"] | {"batch_size": batch}}))
    return where / "recipe.yaml", where / "run", where


def told(where: Path) -> list[dict[str, Any]]:
    """What the processes of a run found, by rank."""
    return [json.loads(path.read_text()) for path in sorted(where.glob("*.json"))]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[dict[str, Any]], dict[str, Any]]:
    """The folders of a run of two processes and of one with twice the batch, and what the processes found."""
    root = tmp_path_factory.mktemp("runs")
    words = [sys.executable, *LAUNCH, str(SCRIPT), *map(str, prepared(root / "two", 16))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cut 18 of 36 heads") == 1  # one process speaks
    runpy.run_path(str(SCRIPT))["main"](*prepared(root / "one", 32))
    (one,) = told(root / "one")
    return root / "two" / "run", root / "one" / "run", told(root / "two"), one


def test_every_process_scores_and_plans_alike(both: Any) -> None:
    *_, two, one = both
    assert [found["processes"] for found in two] == [2, 2] and one["processes"] == 1
    assert two[0]["scores"] == two[1]["scores"] and two[0]["plan"] == two[1]["plan"] == one["plan"]
    for mine, theirs in zip(two[0]["scores"]["heads"], one["scores"]["heads"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_the_losses_are_those_of_one_process_and_the_same_batch(both: Any) -> None:
    *_, two, one = both
    assert two[0]["losses"] == two[1]["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two[0]["batch"] == one["batch"] == 64


def test_every_image_is_evaluated_once(both: Any) -> None:
    *_, two, one = both
    assert [found["evaluated"] for found in (*two, one)] == [61, 61, 61]
    assert two[0]["top1"] == two[1]["top1"] == pytest.approx(one["top1"], abs=100 / 61 + 1e-6)
    assert two[0]["top1"][0] == one["top1"][0]


def test_one_process_writes_what_one_process_would(both: Any) -> None:
    two, one, *_ = both
    assert {f.name for f in two.iterdir()} == {f.name for f in one.iterdir()} and not list(two.glob(".*"))
    mine, theirs = slimvit.load(two), slimvit.load(one)
    images = torch.randn(8, *preprocessing_of(mine).input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(mine(images), theirs(images), atol=0.02)
    assert len(list(csv.DictReader((two / "history.csv").read_text().splitlines()))) == 2
