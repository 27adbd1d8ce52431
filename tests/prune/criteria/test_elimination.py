import pytest
import torch

from slimvit.prune.criteria import elimination as module
from slimvit.prune.criteria.elimination import DAMPING, eliminate


def case(units, width, outputs=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    k = units * width
    z = torch.randn(4 * k, k, generator=g, dtype=torch.float64) @ torch.randn(k, k, generator=g, dtype=torch.float64)
    weight = torch.randn(k, outputs, generator=g, dtype=torch.float64)
    gradients = torch.randn(20, outputs, generator=g, dtype=torch.float64)
    return z.T @ z / len(z), weight, gradients.T @ gradients


def unexplained(covariance, weight, metric, kept, width):
    """trace(F E^T S E) of the best linear stand-in, by constrained least squares: what the kept units cannot give."""
    index = [u * width + i for u in kept for i in range(width)]
    covariance = covariance + DAMPING * covariance.diagonal().mean() * torch.eye(len(covariance)).double()
    best = torch.zeros_like(weight)
    if index:
        root = torch.linalg.cholesky(covariance).T  # S = root^T root
        best[index] = torch.linalg.lstsq(root[:, index], root @ weight).solution
    error = weight - best
    return float((error.T @ covariance @ error * metric).sum())


@pytest.mark.parametrize(("units", "width"), [(4, 3), (9, 1), (1, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_greedy_equals_brute_force(units, width, seed):
    parts = case(units, width, seed=seed)
    order, costs = eliminate(*parts, width)
    left, before = list(range(units)), 0.0
    for unit, cost in zip(order, costs, strict=True):
        after = {u: unexplained(*parts, [k for k in left if k != u], width) for u in left}
        assert unit == min(after, key=after.get)
        assert cost == pytest.approx(after[unit] - before, rel=1e-6)
        left.remove(unit)
        before = after[unit]
    assert not left


def test_rounds_of_any_length_give_the_same(monkeypatch):
    parts = case(40, 1)
    found = []
    for at_once in (1, 7, 40, 100):
        monkeypatch.setattr(module, "AT_ONCE", at_once)
        found.append(eliminate(*parts, 1))
    for order, costs in found:
        assert order == found[0][0] and costs == pytest.approx(found[0][1], rel=1e-8)


def test_a_copy_of_another_unit_goes_first_and_for_nothing(monkeypatch):
    monkeypatch.setattr(module, "DAMPING", 1e-6)
    covariance, weight, metric = case(5, 1)
    covariance = torch.cat([covariance, covariance[2:3]])
    covariance = torch.cat([covariance, covariance[:, 2:3]], 1)
    order, costs = eliminate(covariance, torch.cat([weight, weight[:1]]), metric, 1)
    assert order[0] in (2, 5) and costs[0] < 0.05 * costs[1]


def test_nothing_to_eliminate():
    assert eliminate(torch.zeros(0, 0), torch.zeros(0, 3), torch.eye(3), 1) == ((), ())


def test_units_that_never_fire_cost_nothing(monkeypatch):
    monkeypatch.setattr(module, "DAMPING", 1e-6)
    covariance, weight, metric = case(6, 1)
    covariance[3] = covariance[:, 3] = 0
    order, costs = eliminate(covariance, weight, metric, 1)
    assert order[0] == 3 and costs[0] < 1e-2 * costs[1]
    assert all(c >= 0 for c in eliminate(torch.zeros(6, 6), weight, metric, 1)[1])
