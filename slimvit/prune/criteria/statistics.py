"""What criteria are computed from, for one branch: an attention (units: heads, d channels wide) or an MLP (units:
neurons, d = 1). Its last linear layer has k = units * d inputs z and C outputs, with loss gradients g.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gates:
    """Means over images of abs(dLoss/dm) and (dLoss/dm)^2, m a multiplier on a unit's output, [units] each."""

    absolute: Tensor
    square: Tensor


@dataclass(frozen=True)
class BranchMoments:
    """`covariance` [k, k]: of z, over tokens. `inputs` [k, k] and `outputs` [C, C]: means over images of A A^T
    and A^T A, where A = sum over the image's tokens of z g^T is its gradient of the layer's weights (k to C); in
    float32, with z centred by the mean of the images up to it.
    """

    covariance: Tensor
    inputs: Tensor
    outputs: Tensor


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


class GateSums:
    """`Gates` on the way."""

    def __init__(self) -> None:
        self.images = 0
        self.absolute, self.square = _zero(), _zero()

    def add(self, z: Tensor, grad: Tensor, weight: Tensor, units: int) -> None:
        """A batch: `z` [B, N, k] and `grad` [B, N, C] of its tokens, `weight` [C, k] of the layer."""
        along = (z * (grad @ weight)).sum(1).cpu().double()  # z dLoss/dz, over tokens
        gates = along.reshape(len(z), units, z.shape[-1] // max(1, units)).sum(-1)
        self.absolute = self.absolute + gates.abs().sum(0)
        self.square = self.square + gates.square().sum(0)
        self.images += len(z)

    def mean(self) -> Gates:
        """Return the means over all images so far."""
        return Gates(self.absolute / self.images, self.square / self.images)


class MomentSums:
    """`Moments` on the way."""

    def __init__(self) -> None:
        self.images = self.tokens = 0
        self.shift: Tensor | None = None
        self.z, self.zz = _zero(), _zero()
        self.inputs, self.outputs = torch.zeros(()), torch.zeros(())

    def add(self, z: Tensor, grad: Tensor, weight: Tensor, units: int) -> None:
        """A batch: `z` [B, N, k] and `grad` [B, N, C] of its tokens."""
        z, grad = z.float(), grad.float()
        if self.shift is None:
            self.shift = z.flatten(0, -2).mean(0)  # reshape(-1, k) cannot take the k = 0 of no heads
        z = z - self.shift  # float32 products are exact enough of values near their mean
        flat = z.flatten(0, -2)
        self.zz = self.zz + (flat.T @ flat).cpu().double()
        sums = self.z + z.sum(1).cpu().double().cumsum(0)  # up to every image: batches of any size give the same
        counts = self.tokens + z.shape[1] * torch.arange(1, len(z) + 1, dtype=torch.float64)
        self.z, self.tokens, self.images = sums[-1], self.tokens + len(flat), self.images + len(z)
        inputs, outputs = _of_weight_gradients(z - (sums / counts[:, None]).to(z)[:, None], grad)
        self.inputs, self.outputs = self.inputs + inputs.cpu(), self.outputs + outputs.cpu()

    def mean(self) -> BranchMoments:
        """Spends the sums: MLPs of large models have large ones."""
        mean = self.z / self.tokens
        covariance = self.zz / self.tokens - torch.outer(mean, mean)
        return BranchMoments(covariance, self.inputs.div_(self.images), self.outputs.div_(self.images))


def _of_weight_gradients(z: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over images of A A^T [k, k] and A^T A [C, C], A [k, C] the sum over tokens of z g^T; `z` [B, N, k] and
    `grad` [B, N, C]. With few tokens by their products with each other, [B, N, N]; else by A itself."""
    if _by_tokens(z, grad):
        alike, along = grad @ grad.mT, z @ z.mT
        return z.flatten(0, 1).T @ (alike @ z).flatten(0, 1), grad.flatten(0, 1).T @ (along @ grad).flatten(0, 1)
    a = z.mT @ grad
    rows, columns = a.transpose(0, 1).flatten(1), a.flatten(0, 1)
    return rows @ rows.T, columns.T @ columns


def _by_tokens(z: Tensor, grad: Tensor) -> bool:
    """Whether what tokens have to do with each other is less than a weight gradient."""
    return z.shape[1] < min(z.shape[2], grad.shape[2])
