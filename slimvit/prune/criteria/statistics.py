"""Statistics of one branch, the input of the criteria.

The units of an attention are heads of d channels; those of an MLP are neurons, with d = 1. The last linear layer of the
branch has k = units * d inputs z and C outputs. The gradients of the loss with respect to the outputs are g.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gates:
    """Means over images of abs(dLoss/dm) and (dLoss/dm)^2 [units], where m is a factor of a unit's output."""

    absolute: Tensor
    square: Tensor


@dataclass(frozen=True)
class BranchMoments:
    """Second moments of the inputs and of the weight gradients of the branch's last layer.

    The weight gradient of one image is A [k, C], the sum over its tokens of z g^T. Its moments are float32. They are
    computed from z minus its mean over the images so far.
    """

    covariance: Tensor
    """Covariance of z over all tokens [k, k]."""
    inputs: Tensor
    """Mean over images of A A^T [k, k]."""
    outputs: Tensor
    """Mean over images of A^T A [C, C]."""


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


class GateSums:
    """Running sums of `Gates`."""

    def __init__(self) -> None:
        self.images = 0
        self.absolute, self.square = _zero(), _zero()

    def add(self, z: Tensor, grad: Tensor, weight: Tensor, units: int) -> None:
        """Add a batch: inputs `z` [B, N, k], gradients `grad` [B, N, C], and the layer's `weight` [C, k]."""
        along = (z * (grad @ weight)).sum(1).cpu().double()  # z dLoss/dz, summed over tokens
        gates = along.reshape(len(z), units, z.shape[-1] // max(1, units)).sum(-1)
        self.absolute = self.absolute + gates.abs().sum(0)
        self.square = self.square + gates.square().sum(0)
        self.images += len(z)

    def mean(self) -> Gates:
        """Return the means over all images so far."""
        return Gates(self.absolute / self.images, self.square / self.images)


class MomentSums:
    """Running sums of `BranchMoments`."""

    def __init__(self) -> None:
        self.images = self.tokens = 0
        self.shift: Tensor | None = None
        self.z, self.zz = _zero(), _zero()
        self.inputs, self.outputs = torch.zeros(()), torch.zeros(())

    def add(self, z: Tensor, grad: Tensor, weight: Tensor, units: int) -> None:
        """Add a batch: inputs `z` [B, N, k] and gradients `grad` [B, N, C]; `weight` and `units` are not used."""
        z, grad = z.float(), grad.float()
        if self.shift is None:
            self.shift = z.flatten(0, -2).mean(0)  # reshape(-1, k) fails for k = 0, a branch without heads
        z = z - self.shift  # shifted values keep float32 products exact enough
        flat = z.flatten(0, -2)
        self.zz = self.zz + (flat.T @ flat).cpu().double()
        sums = self.z + z.sum(1).cpu().double().cumsum(0)  # one sum per image, so that the batch size does not matter
        counts = self.tokens + z.shape[1] * torch.arange(1, len(z) + 1, dtype=torch.float64)
        self.z, self.tokens, self.images = sums[-1], self.tokens + len(flat), self.images + len(z)
        inputs, outputs = _of_weight_gradients(z - (sums / counts[:, None]).to(z)[:, None], grad)
        self.inputs, self.outputs = self.inputs + inputs.cpu(), self.outputs + outputs.cpu()

    def mean(self) -> BranchMoments:
        """Return the means over all images. The sums are divided in place to save memory in large MLPs."""
        mean = self.z / self.tokens
        covariance = self.zz / self.tokens - torch.outer(mean, mean)
        return BranchMoments(covariance, self.inputs.div_(self.images), self.outputs.div_(self.images))


def _of_weight_gradients(z: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over images of A A^T [k, k] and A^T A [C, C], from `z` [B, N, k] and `grad` [B, N, C].

    They are computed from the products of tokens [B, N, N] or from the gradients A [B, k, C], whichever is smaller.
    """
    if _by_tokens(z, grad):
        alike, along = grad @ grad.mT, z @ z.mT
        return z.flatten(0, 1).T @ (alike @ z).flatten(0, 1), grad.flatten(0, 1).T @ (along @ grad).flatten(0, 1)
    a = z.mT @ grad
    rows, columns = a.transpose(0, 1).flatten(1), a.flatten(0, 1)
    return rows @ rows.T, columns.T @ columns


def _by_tokens(z: Tensor, grad: Tensor) -> bool:
    """Whether the products of tokens are smaller than the weight gradients."""
    return z.shape[1] < min(z.shape[2], grad.shape[2])
