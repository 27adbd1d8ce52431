"""Criterion `residual`: rise of the loss when units are removed one by one, with a refit of the remaining units.

Let Wo [k, C] be the weight of the branch's last layer and S the covariance of its inputs z. With kept units K and
removed units R, the refit sets the weight of K to Wo_K + S_KK^-1 S_KR Wo_R. The error of the branch is then z P, where
P [k, C] is Wo_R in the rows of R and -S_KK^-1 S_KR Wo_R in the rows of K.

To second order the loss rises by the mean over images of <P, A>^2 / 2, where A is an image's weight gradient. The
factor 1/2 is left out. The second moment of A [kC, kC] is approximated by the Kronecker product of E[A A^T] and
E[A^T A], divided by their trace: the best Kronecker product after one step of power iteration (Morwani et al., A New
Perspective on Shampoo's Preconditioner, 2024). Moments per image include the correlation of errors between tokens,
which moments per token (K-FAC) neglect.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slimvit.data.loaders import Batches
from slimvit.models.base import AttentionBlock, TimmModule
from slimvit.models.parts.base import Part
from slimvit.models.parts.registry import PARTS
from slimvit.models.registry import attention_blocks
from slimvit.prune.criteria.base import ScoresByPart, criterion
from slimvit.prune.criteria.calibration import observe
from slimvit.prune.criteria.elimination import damped, eliminate, own_blocks
from slimvit.prune.criteria.scores import PartScores
from slimvit.prune.criteria.statistics import BranchMoments, MomentSums

MILESTONES = np.array([0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1])
"""Shares of removed neurons at which the rise is computed. Between them the costs of the elimination interpolate."""
TINY = np.finfo(np.float64).tiny
Floats = npt.NDArray[np.float64]

Ranked = tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]
"""Units in the order of removal, the rise added by each in that order, and the rise of each alone by position."""


@criterion("residual")
def residual(model: TimmModule, batches: Batches, seed: int, parts: tuple[str, ...]) -> ScoresByPart:
    """Estimate the rise of the loss after cut and refit, unit by unit."""
    loss = "signs" if model.num_classes else "features"
    moments = observe(model, batches, loss, MomentSums, seed, parts)
    blocks = attention_blocks(model)
    return {
        name: [_ranked(PARTS[name], view, m) for view, m in zip(blocks, moments[name], strict=True)] for name in parts
    }


def _ranked(part: Part, view: AttentionBlock, moments: BranchMoments) -> PartScores:
    out = part.out(view)
    assert out is not None
    return PartScores(*rank(moments, out.weight.detach().cpu().T, part.width(view)))


def rank(moments: BranchMoments, weight: Tensor, width: int) -> Ranked:
    """Return the order and costs of all units of one branch.

    Args:
        moments: Moments of the branch.
        weight: Weight of its last layer Wo [k, C], on the CPU.
        width: Channels of one unit.
    """
    units = len(weight) // width
    if units == 0:
        return (), (), ()
    inputs, weight = moments.inputs.double(), weight.double()
    outputs = moments.outputs.double() / inputs.trace().clamp_min(TINY)
    weighting = _relative(inputs)
    if width == 1:  # the rank is at most the number of images, too low for thousands of neurons
        weighting = weighting + _relative(moments.covariance)
    order, costs = eliminate(weighting, weight, outputs, width)
    kept_first = list(reversed(order))  # order of all matrices below
    channels = torch.tensor([u * width + i for u in kept_first for i in range(width)])
    factor = torch.linalg.cholesky(damped(moments.covariance)[channels][:, channels])
    inputs, weight = inputs[channels][:, channels], weight[channels]
    gone = np.arange(1, units + 1)
    stops = gone if width > 1 else np.unique(np.maximum(1, np.round(MILESTONES * units))).astype(int)
    rises = _rises(factor, inputs, weight, outputs, stops * width)
    guess = np.maximum(np.cumsum(costs), TINY)
    rise = np.maximum.accumulate(guess * np.interp(gone, stops, rises / guess[stops - 1]))
    alone = dict(zip(kept_first, _alone(factor, inputs, weight, outputs, width), strict=True))
    return order, tuple(np.diff(rise, prepend=0.0).tolist()), tuple(alone[unit] for unit in range(units))


def _relative(moments: Tensor) -> Tensor:
    """Moments divided by the mean of their diagonal."""
    return moments / moments.diagonal().mean().clamp_min(TINY)


def _rise(inputs: Tensor, error: Tensor, outputs: Tensor) -> Tensor:
    """trace(outputs P^T inputs P), [...], for errors P [..., k, C]."""
    return ((inputs @ error) * (error @ outputs)).sum((-2, -1))


def _rises(factor: Tensor, inputs: Tensor, weight: Tensor, outputs: Tensor, gone: npt.NDArray[np.int64]) -> Floats:
    """Rise when the last n channels are removed, for every n in `gone`.

    One Cholesky factor L of S serves all of them: S_KK = L_KK L_KK^T and S_KR = L_KK L_RK^T.
    """
    rises = []
    for kept in len(weight) - gone:
        error = weight.clone()
        error[:kept] = -torch.linalg.solve_triangular(
            factor[:kept, :kept].T, factor[kept:, :kept].T @ weight[kept:], upper=True
        )
        rises.append(float(_rise(inputs, error, outputs)))
    return np.maximum(0.0, rises)


def _alone(factor: Tensor, inputs: Tensor, weight: Tensor, outputs: Tensor, width: int) -> list[float]:
    """Rise when each unit is removed alone: P = M_h M_hh^-1 Wo_h, where M is the inverse of S."""
    inverse = torch.cholesky_inverse(factor)
    columns = inverse.unflatten(0, (-1, width))  # the columns of each unit as rows [units, width, k]
    back = torch.linalg.solve(own_blocks(inverse, width), weight.unflatten(0, (-1, width)))
    return _rise(columns @ inputs @ columns.mT, back, outputs).tolist()
