from collections.abc import Callable

import pytest
import torch
from torch import nn

from slimvit.measure.latency.timer import AT_LEAST, PASSES, TURN, WARM_UP, by_round, interleaved, latency, passes_for


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
