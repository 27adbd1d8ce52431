from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from slimvit.measure.latency.timer import (
    AT_LEAST,
    PASSES,
    TURN,
    WARM_UP,
    Ratio,
    by_round,
    interleaved,
    latency,
    median_ratio,
    passes_for,
)


class Slow(nn.Module):
    """Counts its calls, and remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.seen = []

    def forward(self, x):
        self.seen.append((tuple(x.shape), x.dtype, self.training, torch.is_grad_enabled()))
        return x * self.weight


def test_latency_and_throughput_belong_together():
    model = Slow().train()
    found = latency(model, (3, 4, 4), batch=2, seconds=0.0)
    assert set(found) == {"latency_ms", "throughput"}
    assert found["latency_ms"] > 0
    assert found["throughput"] == pytest.approx(2 * 1000 / found["latency_ms"])
    assert model.seen == [((2, 3, 4, 4), torch.float64, False, False)] * (WARM_UP + AT_LEAST)
    assert model.training


def test_every_model_has_its_turn_in_every_round_and_the_order_turns_round():
    seen: list[str] = []

    def call(name: str) -> Callable[[], float]:
        return lambda: seen.append(name) or float(len(seen))

    times = interleaved({name: call(name) for name in "abc"}, range(3), passes=2)
    assert "".join(seen) == "aabbcc" + "ccbbaa" + "aabbcc"
    assert times["a"] == [[1.0, 2.0], [11.0, 12.0], [13.0, 14.0]] and times["c"][1] == [7.0, 8.0]
    assert by_round(times["a"]) == [1.5, 11.5, 13.5]


def test_a_turn_of_a_fast_model_has_more_passes():
    assert passes_for(0.0) == PASSES[1] and passes_for(10.0) == PASSES[0]
    assert passes_for(TURN / 10) == 10


def test_what_slows_both_models_of_a_round_does_not_count():
    noise = np.random.default_rng(0).uniform(1, 10, 30)
    found = median_ratio(list(3.0 * noise), list(2.0 * noise))
    assert (found.middle, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_the_interval_covers_the_true_median_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    samples = rng.lognormal(np.log(1.2), 0.1, (300, 25))
    found = [median_ratio(list(s), [1.0] * 25, seed=i) for i, s in enumerate(samples)]
    assert 0.90 <= np.mean([r.low <= 1.2 <= r.high for r in found]) <= 0.99
    assert all(r.low <= r.middle <= r.high for r in found)


def test_the_share_of_a_promised_gain():
    share = Ratio(1.1, 1.05, 1.2).of_the_gain(1.2)
    assert (share.middle, share.low, share.high) == pytest.approx((0.5, 0.25, 1.0))
    slower = Ratio(0.9, 0.8, 0.95).of_the_gain(0.95)
    assert slower.low <= slower.middle <= slower.high


def test_the_same_rounds_give_the_same_interval():
    times = list(np.random.default_rng(2).uniform(1, 2, 20))
    assert median_ratio(times, times[::-1]) == median_ratio(times, times[::-1])
