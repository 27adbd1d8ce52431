"""Which units of a branch can go, and what each costs, when the others are refitted to stand in for it.

Optimal brain surgeon (Hassibi and Stork, 1993) with a head or a neuron for a weight. ``hessian`` S [k, k]: covariance
of what enters the branch's last layer. ``weight`` Wo [k, C]. ``metric`` F [C, C]: second moment of the loss gradient
at its output. With the units K kept, M = S_KK^-1 and the refitted weights W = M S_K: Wo, removing unit h raises
trace(F E^T E), E the branch's error, by trace(F W_h^T (M_hh)^-1 W_h); then M and W are brought up to date.
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.01
"""Added to the covariance's diagonal, in units of its mean, before it is inverted."""
AT_ONCE = 64
"""Single channels removed before the inverse is brought up to date."""

Eliminated = tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]
"""Units in the order in which they go; what each costs then; what each, by position, would cost if it went alone."""


def eliminate(covariance: Tensor, weight: Tensor, metric: Tensor, width: int) -> Eliminated:
    """Greedily remove all units of ``width`` channels, always the one that raises the error least.

    ``covariance`` [k, k], ``weight`` [k, C], ``metric`` [C, C], on the CPU.
    """
    k = len(covariance)
    if k == 0:
        return (), (), ()
    damping = DAMPING * covariance.diagonal().mean().clamp_min(1e-12)
    inverse = torch.linalg.inv(covariance.double() + damping * torch.eye(k, dtype=torch.float64))
    weight, metric = weight.double(), metric.double()
    alone = _costs(inverse, weight, metric, width)
    order, costs = _singles(inverse, weight, metric) if width == 1 else _groups(inverse, weight, metric, width)
    return tuple(order), tuple(costs), tuple(alone.tolist())


def _costs(inverse: Tensor, weight: Tensor, metric: Tensor, width: int) -> Tensor:
    """What each unit there now would cost if it were the next to go, [units]."""
    blocks = inverse.unflatten(0, (-1, width)).unflatten(2, (-1, width))  # [units, width, units, width]
    own = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    rows = weight.unflatten(0, (-1, width))
    return ((rows @ metric) * torch.linalg.solve(own, rows)).sum((1, 2))


def _groups(inverse: Tensor, weight: Tensor, metric: Tensor, width: int) -> tuple[list[int], list[float]]:
    left = list(range(len(inverse) // width))
    order: list[int] = []
    costs: list[float] = []
    while left:
        cost, position = _costs(inverse, weight, metric, width).min(0)
        order.append(left.pop(int(position)))
        costs.append(float(cost))
        gone = torch.zeros(len(inverse), dtype=torch.bool)
        gone[int(position) * width : (int(position) + 1) * width] = True
        share = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, ~gone])  # [width, rest]
        weight = weight[~gone] - share.T @ weight[gone]
        inverse = inverse[~gone][:, ~gone] - inverse[~gone][:, gone] @ share
    return order, costs


def _singles(inverse: Tensor, weight: Tensor, metric: Tensor) -> tuple[list[int], list[float]]:
    """The same for units of one channel, of which there are many: the removals of a round are kept as columns U and
    rows V, inverse - U U^T and weight - U V, and only what the next choice needs is brought up to date."""
    left = torch.arange(len(inverse))
    order: list[int] = []
    costs: list[float] = []
    while len(left):
        rounds = min(AT_ONCE, len(left))
        u, v = inverse.new_zeros(len(left), rounds), inverse.new_zeros(rounds, weight.shape[1])
        diagonal, energy = inverse.diagonal().clone(), ((weight @ metric) * weight).sum(1)
        alive = torch.ones(len(left), dtype=torch.bool)
        for i in range(rounds):
            each = torch.where(alive, energy / diagonal, torch.inf)
            cost, j = each.min(0)
            root = diagonal[j].sqrt()
            column = (inverse[:, j] - u[:, :i] @ u[j, :i]) / root
            row = (weight[j] - u[j, :i] @ v[:i]) / root
            heard = metric @ row
            along = weight @ heard - u[:, :i] @ (v[:i] @ heard)
            energy = energy - 2 * column * along + column.square() * (row @ heard)
            diagonal = diagonal - column.square()
            u[:, i], v[i] = column, row
            alive[j] = False
            order.append(int(left[j]))
            costs.append(max(0.0, float(cost)))
        inverse = inverse[alive][:, alive] - u[alive] @ u[alive].T
        weight = weight[alive] - u[alive] @ v
        left = left[alive]
    return order, costs
