"""The main job on a GPU, where there is one: the same plan as on the CPU, and the same figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.workflows.run import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_a_run_on_cuda_equals_one_on_the_cpu():
    recipe = Recipe.parse(
        {
            "model": {"name": "vit_digits"},
            "data": {"name": "digits", "eval_images": 200},
            "prune": {"ratio": 0.5, "calibration_images": 128, "criterion": "taylor"},
        }
    )
    cpu, cuda = run(recipe, Options(device="cpu")), run(recipe, Options(device="cuda"))
    assert cuda.model.slim_plan == cpu.model.slim_plan
    assert [s.top1 for s in cuda.stages] == pytest.approx([s.top1 for s in cpu.stages], abs=1.0)


def test_bench_times_and_weighs_on_cuda(slimvit_: Callable[..., Any]) -> None:
    words = ("bench", "vit_digits", "--device", "cuda", "--rounds", 20, "--precision", "fp32,bf16", "--json")
    fp32, bf16 = json.loads(slimvit_(*words).stdout)
    for row, size in ((fp32, 4), (bf16, 2)):
        assert row["device"] == torch.cuda.get_device_name() and row["throughput"] > 0
        assert row["peak_memory_gib"] * 2**30 > size * row["params"]
