"""In which order the units of a branch can go, when the others are refitted to stand in for them.

Optimal brain surgeon (Hassibi and Stork, 1993) with a head or a neuron for a weight. `covariance` S [k, k]: second
moments of what enters the branch's last layer, weighted or not. `weight` Wo [k, C]. `metric` F [C, C]: how much
the loss minds errors of its outputs. With the units K kept, M = S_KK^-1 and the refitted weights W = M S_K: Wo,
removing unit h raises trace(F E^T E), E the branch's error, by trace(F W_h^T (M_hh)^-1 W_h); then M and W are brought
up to date.
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.01
"""Added to the covariance's diagonal, in units of its mean, before it is inverted."""
AT_ONCE = 64
"""Single channels removed before the inverse is brought up to date."""

COMPACT = 0.75
"""Share of the units still there below which those that went are dropped from the matrices."""


def damped(covariance: Tensor) -> Tensor:
    """Return the matrix [k, k] in float64 with `DAMPING` on its diagonal, so that it can be inverted."""
    damping = DAMPING * covariance.diagonal().mean().clamp_min(1e-12)
    return covariance.double() + damping * torch.eye(len(covariance), dtype=torch.float64)


def eliminate(
    covariance: Tensor, weight: Tensor, metric: Tensor, width: int
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Greedily remove all units of `width` channels, always the one that raises the error least; the units in the
    order in which they go, and what each costs then.

    `covariance` [k, k], `weight` [k, C], `metric` [C, C], on the CPU.
    """
    if len(covariance) == 0:
        return (), ()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(covariance)))
    weight, metric = weight.double(), metric.double()
    order, costs = _singles(inverse, weight, metric) if width == 1 else _groups(inverse, weight, metric, width)
    return tuple(order), tuple(costs)


def _costs(inverse: Tensor, weight: Tensor, metric: Tensor, width: int) -> Tensor:
    """What each unit there now would cost if it were the next to go, [units]."""
    rows = weight.unflatten(0, (-1, width))
    return ((rows @ metric) * torch.linalg.solve(own_blocks(inverse, width), rows)).sum((1, 2))


def own_blocks(matrix: Tensor, width: int) -> Tensor:
    """[k, k] to every unit's own block, [units, width, width]."""
    return matrix.unflatten(0, (-1, width)).unflatten(2, (-1, width)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


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
    """The same for units of one channel, of which there are many.

    A unit's cost asks for its own entries of M and of G = W F W^T alone, so only those two [k, k] are kept. Removing j
    takes the outer product of u with itself from M and of u with w_j / root from W, where u = M_j / root and root^2 =
    M_jj. A round's removals are kept as columns: U, P = W F V^T and Q = V F V^T, V the removed rows over their roots.
    """
    gram = weight @ metric @ weight.T
    there, alive = torch.arange(len(inverse)), torch.ones(len(inverse), dtype=torch.bool)
    order: list[int] = []
    costs: list[float] = []
    while alive.any():
        if alive.sum() < COMPACT * len(alive):  # the copies would take longer than what they save, done every round
            inverse, gram, there = inverse[alive][:, alive], gram[alive][:, alive], there[alive]
            alive = alive[alive]
        rounds = min(AT_ONCE, int(alive.sum()))
        u, p = (inverse.new_zeros(len(inverse), rounds) for _ in range(2))
        q = inverse.new_zeros(rounds, rounds)
        diagonal, energy = inverse.diagonal().clone(), gram.diagonal().clone()
        for i in range(rounds):
            cost, j = torch.where(alive, energy / diagonal, torch.inf).min(0)
            root, mine = diagonal[j].sqrt(), u[j, :i]
            column = (inverse[j] - u[:, :i] @ mine) / root
            p[:, i] = (gram[j] - p[:, :i] @ mine) / root
            q[i, :i] = q[:i, i] = (p[j, :i] - q[:i, :i] @ mine) / root
            along = p[:, i] - u[:, :i] @ q[i, :i]
            q[i, i] = along[j] / root
            energy = energy - 2 * column * along + column.square() * q[i, i]
            diagonal = diagonal - column.square()
            u[:, i] = column
            alive[j] = False
            order.append(int(there[j]))
            costs.append(max(0.0, float(cost)))
        half = p - u @ q / 2
        inverse.addmm_(u, u.T, alpha=-1)
        gram.addmm_(u, half.T, alpha=-1).addmm_(half, u.T, alpha=-1)
    return order, costs
