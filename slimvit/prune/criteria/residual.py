"""What the loss rises by as the units of a branch go one after another and those left are refitted to stand in.

With the units K kept, the refit gives them the weights Wo_K + S_KK^-1 S_KR Wo_R (S the covariance of what enters the
branch's last layer, R the rest), so the branch errs by z P, P [k, C] being Wo_R in R's rows and -S_KK^-1 S_KR Wo_R in
K's. To second order the loss rises by the mean over images of <P, A>^2 / 2, A an image's gradient of that layer's
weights. The second moment of A, [kC, kC], is taken as the product of its two sides, E[A A^T] and E[A^T A] over their
trace: the best such product after one step of the power iteration (Morwani et al., A New Perspective on Shampoo's
Preconditioner, 2024). So tokens of an image whose errors add up count as much as they do; with moments per token
(K-FAC) they count as if they were independent, which is wrong by another factor in every block. The half is left out.
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
from slimvit.prune.criteria.base import Found, criterion
from slimvit.prune.criteria.calibration import observe
from slimvit.prune.criteria.elimination import damped, eliminate, own_blocks
from slimvit.prune.criteria.scores import PartScores
from slimvit.prune.criteria.statistics import BranchMoments, MomentSums

MILESTONES = np.array([0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1])
"""Shares of the neurons gone at which the rise is worked out; between them it follows what the elimination says."""

TINY = np.finfo(np.float64).tiny
Floats = npt.NDArray[np.float64]

Ranked = tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]
"""Units in the order in which they go; what each then adds to the rise; what each, by position, adds alone."""


@criterion("residual")
def residual(model: TimmModule, batches: Batches, seed: int, parts: tuple[str, ...]) -> Found:
    """The rise of the loss after the refit, unit after unit."""
    loss = "signs" if model.num_classes else "features"
    seen = observe(model, batches, loss, MomentSums, seed, parts)
    blocks = attention_blocks(model)
    return {name: [_ranked(PARTS[name], view, s) for view, s in zip(blocks, seen[name], strict=True)] for name in parts}


def _ranked(part: Part, view: AttentionBlock, seen: BranchMoments) -> PartScores:
    out = part.out(view)
    assert out is not None
    return PartScores(*rank(seen, out.weight.detach().cpu().T, part.width(view)))


def rank(seen: BranchMoments, weight: Tensor, width: int) -> Ranked:
    """Order and costs of all units of `width` channels; `weight` Wo [k, C], on the CPU."""
    units = len(weight) // width
    if units == 0:
        return (), (), ()
    inputs, weight = seen.inputs.double(), weight.double()
    outputs = seen.outputs.double() / inputs.trace().clamp_min(TINY)
    by = _relative(inputs)
    if width == 1:  # the gradients of a few hundred images cannot tell thousands of neurons apart
        by = by + _relative(seen.covariance)
    order, costs = eliminate(by, weight, outputs, width)
    stays = list(reversed(order))  # from here on units are in this order, so that those kept always come first
    channels = torch.tensor([u * width + i for u in stays for i in range(width)])
    factor = torch.linalg.cholesky(damped(seen.covariance)[channels][:, channels])
    inputs, weight = inputs[channels][:, channels], weight[channels]
    gone = np.arange(1, units + 1)
    stops = gone if width > 1 else np.unique(np.maximum(1, np.round(MILESTONES * units))).astype(int)
    rises = _rises(factor, inputs, weight, outputs, stops * width)
    guess = np.maximum(np.cumsum(costs), TINY)
    rise = np.maximum.accumulate(guess * np.interp(gone, stops, rises / guess[stops - 1]))
    alone = dict(zip(stays, _alone(factor, inputs, weight, outputs, width), strict=True))
    return order, tuple(np.diff(rise, prepend=0.0).tolist()), tuple(alone[unit] for unit in range(units))


def _relative(moments: Tensor) -> Tensor:
    """To a mean diagonal of 1, if it is not zero."""
    return moments / moments.diagonal().mean().clamp_min(TINY)


def _rise(inputs: Tensor, error: Tensor, outputs: Tensor) -> Tensor:
    """trace(outputs P^T inputs P) of errors P [..., k, C], [...]."""
    return ((inputs @ error) * (error @ outputs)).sum((-2, -1))


def _rises(factor: Tensor, inputs: Tensor, weight: Tensor, outputs: Tensor, gone: npt.NDArray[np.int64]) -> Floats:
    """The rise when the last `gone` channels are not there any more.

    One Cholesky factor L of S serves every number of them: S_KK = L_KK L_KK^T and S_KR = L_KK L_RK^T.
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
    """The rise when one unit goes, for every unit: its P is M_h M_hh^-1 Wo_h, M the inverse of S."""
    inverse = torch.cholesky_inverse(factor)
    columns = inverse.unflatten(0, (-1, width))  # of each unit, as rows: [units, width, k]
    back = torch.linalg.solve(own_blocks(inverse, width), weight.unflatten(0, (-1, width)))
    return _rise(columns @ inputs @ columns.mT, back, outputs).tolist()
