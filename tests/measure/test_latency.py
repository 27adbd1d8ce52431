import pytest
import torch
from torch import nn

from slimvit.measure.latency import AT_LEAST, WARM_UP, latency


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
