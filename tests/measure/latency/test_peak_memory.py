"""Peak memory on a CPU, in a process of its own."""

from functools import partial

import timm
import torch
from torch import nn

from slimvit.measure.latency.peak_memory import peak_on_cpu, process_peak, weight_bytes

BUILD = partial(timm.create_model, "deit_tiny_patch16_224")


def test_weights_and_images_are_part_of_the_peak():
    weights = weight_bytes(BUILD())
    assert weights == 4 * sum(p.numel() for p in BUILD().parameters())
    one, many = (peak_on_cpu(BUILD, (3, 224, 224), batch, torch.float32) for batch in (1, 8))
    assert one is not None and many is not None
    assert weights < one < 2**30
    assert many - one > 7 * 3 * 224 * 224 * 4


def test_the_memory_of_this_process_is_not_counted():
    ballast = torch.ones(2**28)  # 1 GiB
    found = peak_on_cpu(partial(nn.Conv2d, 3, 3, 1), (3, 8, 8), 1, torch.bfloat16)
    here = process_peak()
    assert found is not None and here is not None and found < 2**28 < ballast.numel() * 4 < here


def _killed() -> nn.Module:
    import os

    os._exit(9)


def test_a_process_that_is_killed_measures_nothing():
    assert peak_on_cpu(_killed, (3, 8, 8), 1, torch.float32) is None
