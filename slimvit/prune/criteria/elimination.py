"""Greedy elimination of the units of a branch, with a refit of the remaining units after each removal.

Optimal brain surgeon (Hassibi and Stork, 1993) with heads or neurons in place of single weights. Wo [k, C] is the
weight of the branch's last layer, S [k, k] the second moments of its inputs (`covariance`), and F [C, C] the weighting
of output errors in the loss (`metric`). For kept units K let M = S_KK^-1, and let W = M S_K: Wo be the refitted
weights. Removing unit h raises the error trace(F E^T E) by trace(F W_h^T (M_hh)^-1 W_h). M and W are then updated.
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.01
"""Added to the covariance's diagonal before its inversion, in units of its mean."""
AT_ONCE = 64
"""Single channels removed per update of the inverse."""
COMPACT = 0.75
"""Share of remaining units below which the removed ones are deleted from the matrices."""


def damped(covariance: Tensor) -> Tensor:
    """Return the matrix [k, k] in float64, invertible by `DAMPING` on its diagonal."""
    damping = DAMPING * covariance.diagonal().mean().clamp_min(1e-12)
    return covariance.double() + damping * torch.eye(len(covariance), dtype=torch.float64)


def eliminate(
    covariance: Tensor, weight: Tensor, metric: Tensor, width: int
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Remove all units one by one, each time the one whose removal raises the error least.

    Args:
        covariance: Second moments of the layer's inputs [k, k], on the CPU.
        weight: Weight of the layer [k, C].
        metric: Weighting of output errors in the loss [C, C].
        width: Channels of one unit.

    Returns:
        The units in the order of removal, and the rise of the error at each removal.
    """
    if len(covariance) == 0:
        return (), ()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(covariance)))
    weight, metric = weight.double(), metric.double()
    order, costs = _singles(inverse, weight, metric) if width == 1 else _groups(inverse, weight, metric, width)
    return tuple(order), tuple(costs)


def _costs(inverse: Tensor, weight: Tensor, metric: Tensor, width: int) -> Tensor:
    """Rise of the error when each remaining unit is removed next, [units]."""
    rows = weight.unflatten(0, (-1, width))
    return ((rows @ metric) * torch.linalg.solve(own_blocks(inverse, width), rows)).sum((1, 2))


def own_blocks(matrix: Tensor, width: int) -> Tensor:
    """Return the diagonal blocks of a matrix [k, k], one per unit: [units, width, width]."""
    return matrix.unflatten(0, (-1, width)).unflatten(2, (-1, width)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _groups(inverse: Tensor, weight: Tensor, metric: Tensor, width: int) -> tuple[list[int], list[float]]:
    """Order and costs for units of `width` channels."""
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
    """Order and costs for units of one channel, of which a branch has thousands.

    The cost of a unit needs only diagonal entries of M and of G = W F W^T, so these two matrices [k, k] are updated.
    Let u = M_j / r with r^2 = M_jj. Removing unit j subtracts u u^T from M and u (w_j / r) from W. The removals of one
    round are collected as columns: U, P = W F V^T and Q = V F V^T, where V holds the removed rows w_j / r.
    """
    gram = weight @ metric @ weight.T
    ids, alive = torch.arange(len(inverse)), torch.ones(len(inverse), dtype=torch.bool)
    order: list[int] = []
    costs: list[float] = []
    while alive.any():
        if alive.sum() < COMPACT * len(alive):  # compacting in every round would cost more than it saves
            inverse, gram, ids = inverse[alive][:, alive], gram[alive][:, alive], ids[alive]
            alive = alive[alive]
        rounds = min(AT_ONCE, int(alive.sum()))
        u, p = (inverse.new_zeros(len(inverse), rounds) for _ in range(2))
        q = inverse.new_zeros(rounds, rounds)
        diagonal, energy = inverse.diagonal().clone(), gram.diagonal().clone()
        for i in range(rounds):
            cost, j = torch.where(alive, energy / diagonal, torch.inf).min(0)
            root, row = diagonal[j].sqrt(), u[j, :i]
            column = (inverse[j] - u[:, :i] @ row) / root
            p[:, i] = (gram[j] - p[:, :i] @ row) / root
            q[i, :i] = q[:i, i] = (p[j, :i] - q[:i, :i] @ row) / root
            along = p[:, i] - u[:, :i] @ q[i, :i]
            q[i, i] = along[j] / root
            energy = energy - 2 * column * along + column.square() * q[i, i]
            diagonal = diagonal - column.square()
            u[:, i] = column
            alive[j] = False
            order.append(int(ids[j]))
            costs.append(max(0.0, float(cost)))
        half = p - u @ q / 2
        inverse.addmm_(u, u.T, alpha=-1)
        gram.addmm_(u, half.T, alpha=-1).addmm_(half, u.T, alpha=-1)
    return order, costs
