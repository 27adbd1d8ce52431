"""The main job on a GPU, where there is one: the same plan as on the CPU, and the same figures."""

from __future__ import annotations

import pytest
import torch

from slimvit.options import Options
from slimvit.pipeline import run
from slimvit.recipe import Recipe

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
