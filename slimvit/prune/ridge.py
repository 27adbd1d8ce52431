"""Ridge regression of a layer's weights from running second moments. The ridge is given or chosen by leave-out error.

    minimise over W, b:  mean ||X W + b - Y||^2 + lambda' ||W - W0||^2,   lambda' = ridge * mean diag(cov X).
    W = W0 + (Sxx + lambda' I)^-1 (Sxy - Sxx W0),   b = mean Y - mean X W.

X [tokens, k] are the inputs of the layer. Y [tokens, C] are the target outputs of the branch. Sxx and Sxy are the
centred second moments, W0 the weights before the refit. With few calibration images a large ridge keeps W near W0.

The best ridge differs from layer to layer by a factor of 1,000. For its choice the images are split into
folds, since tokens of one image are not independent. W is solved without each fold. The leave-out error is the sum over
folds of the squared error on the fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FOLDS = 4
"""Folds of images for the leave-out error."""
GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Ridges to choose from."""
START = GRID.index(0.1)
"""Index of the first ridge in the search."""


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


@dataclass
class RowSums:
    """Sums over weighted rows, in float64 on the CPU, since some accelerators lack float64."""

    n: float = 0
    x: Tensor = _zero()
    y: Tensor = _zero()
    xx: Tensor = _zero()
    xy: Tensor = _zero()
    yy: Tensor = _zero()
    """Sum of the squared norms of Y, a scalar."""

    def add(self, x: Tensor, y: Tensor, weights: Tensor | None) -> None:
        """Add rows `x` [n, k] and `y` [n, C] with `weights` [n]; products are computed in float32 on their device."""
        by_x, by_y = (x, y) if weights is None else (x * weights[:, None], y * weights[:, None])
        self.n += len(x) if weights is None else float(weights.sum())
        self.x = self.x + by_x.sum(0).cpu().double()
        self.y = self.y + by_y.sum(0).cpu().double()
        self.xx = self.xx + (by_x.T @ x).cpu().double()
        self.xy = self.xy + (by_x.T @ y).cpu().double()
        self.yy = self.yy + (by_y * y).sum().cpu().double()

    def __sub__(self, other: RowSums) -> RowSums:
        return RowSums(*(getattr(self, f) - getattr(other, f) for f in self.__dataclass_fields__))

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the means of X [k] and Y [C]."""
        return self.x / self.n, self.y / self.n

    def centred(self) -> tuple[Tensor, Tensor]:
        """Return the centred second moments [k, k] and [k, C]."""
        mean_x, mean_y = self.means()
        return self.xx / self.n - torch.outer(mean_x, mean_x), self.xy / self.n - torch.outer(mean_x, mean_y)

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Return the sum of ||X W + b - Y||^2 for W [k, C] and b [C]."""
        outputs = self.xx @ weight + torch.outer(self.x, bias)  # X^T (X W + b)
        cross = (weight * (outputs - 2 * self.xy)).sum() + (bias * (self.x @ weight - 2 * self.y)).sum()
        return float(cross + self.n * bias.square().sum() + self.yy)


class RidgeRegression:
    """Running sums over paired rows by fold, and the regression from them."""

    def __init__(self, folds: int = 1) -> None:
        self.folds = [RowSums() for _ in range(folds)]
        self.images = 0
        self.shift: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            x: Inputs [B, ..., k].
            y: Target outputs [B, ..., C].
            weights: Weights of the tokens [B, ...]; by default all are equal.
        """
        rows = [t.flatten(1, -2).float() for t in (x, y)]  # reshape(-1, k) fails for k = 0, a branch without heads
        if self.shift is None:  # shifted values keep float32 products exact enough
            self.shift = (rows[0].flatten(0, 1).mean(0), rows[1].flatten(0, 1).mean(0))
        inputs, outputs = rows[0] - self.shift[0], rows[1] - self.shift[1]
        flat = None if weights is None else weights.flatten(1).float()
        for i, sums in enumerate(self.folds):
            mine = slice((i - self.images) % len(self.folds), None, len(self.folds))
            if len(inputs[mine]):
                sums.add(
                    inputs[mine].flatten(0, 1), outputs[mine].flatten(0, 1),
                    None if flat is None else flat[mine].flatten(),
                )  # fmt: skip
        self.images += len(x)

    def solve(self, old_weight: Tensor, ridge: float | None, intercept: bool = True) -> tuple[Tensor, Tensor]:
        """Solve the ridge regression.

        Args:
            old_weight: The weight W0 [C, k] before the refit.
            ridge: Strength of the pull towards W0, in units of the mean variance of X; None chooses the one with the
                lowest leave-out error.
            intercept: Whether to solve for a bias. Without it the moments are not centred.

        Returns:
            Weight [C, k] and bias [C] in torch's layout, float64.
        """
        assert self.shift is not None
        shift = [t.cpu().double() for t in self.shift]
        total, old = _total(self.folds), old_weight.cpu().double().T
        if not intercept:
            total = _unshifted(total, *shift)
        if ridge is None:
            folds = self.folds if intercept else [_unshifted(fold, *shift) for fold in self.folds]
            ridge = best_ridge(total, [fold for fold in folds if 0 < fold.n < total.n], old, intercept)
        weight, _ = _solved(total, old, ridge, intercept)
        mean_x, mean_y = total.means()
        if not intercept:
            return weight.T, torch.zeros_like(mean_y)
        return weight.T, mean_y + shift[1] - (mean_x + shift[0]) @ weight


def best_ridge(total: RowSums, folds: Sequence[RowSums], old: Tensor, intercept: bool) -> float:
    """Return the ridge of `GRID` at the minimum of the leave-out error that is nearest to 0.1."""
    if len(old) == 0 or len(folds) < 2:
        return GRID[START]
    others = [total - fold for fold in folds]

    def error(i: int) -> float:
        return sum(
            fold.error(*_solved(kept, old, GRID[i], intercept)) for fold, kept in zip(folds, others, strict=True)
        )

    best, lowest = START, error(START)
    for step in (1, -1):
        while 0 <= best + step < len(GRID) and (value := error(best + step)) < lowest:
            best, lowest = best + step, value
        if best != START:
            break
    return GRID[best]


def _total(folds: Sequence[RowSums]) -> RowSums:
    total = RowSums()
    for fold in folds:
        total = RowSums(*(getattr(total, f) + getattr(fold, f) for f in fold.__dataclass_fields__))
    return total


def _unshifted(sums: RowSums, shift_x: Tensor, shift_y: Tensor) -> RowSums:
    """The sums of the rows before `shift_x` [k] and `shift_y` [C] were subtracted."""
    x, y, n = sums.x + sums.n * shift_x, sums.y + sums.n * shift_y, sums.n
    cross = torch.outer(sums.x, shift_x)
    xx = sums.xx + cross + cross.T + n * torch.outer(shift_x, shift_x)
    xy = sums.xy + torch.outer(sums.x, shift_y) + torch.outer(shift_x, sums.y) + n * torch.outer(shift_x, shift_y)
    return RowSums(n, x, y, xx, xy, sums.yy + 2 * shift_y @ sums.y + n * shift_y @ shift_y)


def _solved(sums: RowSums, old: Tensor, ridge: float, intercept: bool) -> tuple[Tensor, Tensor]:
    """Weight [k, C] and bias [C]."""
    sxx, sxy = sums.centred() if intercept else (sums.xx / sums.n, sums.xy / sums.n)
    mean_x, mean_y = sums.means()
    if len(sxx):  # a block without heads has no features, only a bias
        damping = ridge * sxx.diagonal().mean().clamp_min(1e-12)
        system = sxx + damping * torch.eye(len(sxx), dtype=sxx.dtype)
        weight = torch.linalg.solve(system, sxy + damping * old)
    else:
        weight = old
    return weight, mean_y - mean_x @ weight if intercept else torch.zeros_like(mean_y)
