"""The regression against explicit least squares, and the ridge against a search by brute force."""

from __future__ import annotations

import pytest
import torch

from slimvit.prune.ridge import FOLDS, GRID, RidgeRegression


def rows(images: int = 20, tokens: int = 10, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs [B, N, 6], outputs [B, N, 4] and old weights [4, 6]."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(images, tokens, 6, generator=g).double() @ torch.randn(6, 6, generator=g).double() + 3
    y = x[..., :4] - 5 + noise * torch.randn(images, tokens, 4, generator=g).double()
    return x, y, torch.randn(4, 6, generator=g).double()


def least_squares(x, y, w, old, ridge, intercept):
    """Weight [C, k] and bias [C] of weighted rows, by torch's own solver."""
    x, y, w = x.flatten(0, 1), y.flatten(0, 1), w.flatten().double()
    w = w / w.sum()
    mean_x, mean_y = (w @ x, w @ y) if intercept else (torch.zeros(6).double(), torch.zeros(4).double())
    xc, yc = (x - mean_x) * w.sqrt()[:, None], (y - mean_y) * w.sqrt()[:, None]
    damping = ridge * xc.square().sum(0).mean()
    stacked = torch.cat([xc, damping.sqrt() * torch.eye(6).double()])
    found = torch.linalg.lstsq(stacked, torch.cat([yc, damping.sqrt() * old.T])).solution
    return found.T, mean_y - mean_x @ found


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("intercept", [True, False])
def test_equals_explicit_ridge_least_squares(intercept, weighted):
    x, y, old = rows()
    w = (
        torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(1)) + 0.1
        if weighted
        else torch.ones(x.shape[:2])
    )
    regression = RidgeRegression(3)
    for a, b, c in zip(x.split(7), y.split(7), w.split(7), strict=True):
        regression.add(a, b, c if weighted else None)
    weight, bias = regression.solve(old, 0.3, intercept=intercept)
    expected, shift = least_squares(x, y, w, old, 0.3, intercept)
    assert torch.allclose(weight, expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(bias, shift, atol=1e-4)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("images", "noise"), [(8, 6.0), (40, 0.01)])
def test_the_ridge_has_the_lowest_error_on_images_left_out(images, noise, intercept):
    """Few noisy images want a large one, many clean ones a small one."""
    x, y, old = rows(images, 3, noise)
    regression = RidgeRegression(FOLDS)
    for a, b in zip(x.split(5), y.split(5), strict=True):
        regression.add(a, b)

    def error(ridge):
        total = 0.0
        for fold in range(FOLDS):
            out = torch.arange(images) % FOLDS == fold
            weight, bias = least_squares(x[~out], y[~out], torch.ones(x[~out].shape[:2]), old, ridge, intercept)
            total += float((x[out] @ weight.T + bias - y[out]).square().sum())
        return total

    best = min(GRID, key=error)
    assert best > 0.1 if noise > 1 else best < 0.1
    weight, bias = regression.solve(old, None, intercept=intercept)
    expected, shift = regression.solve(old, best, intercept=intercept)
    assert torch.equal(weight, expected) and torch.equal(bias, shift)


def test_one_image_keeps_the_usual_ridge():
    x, y, old = rows(1)
    regression = RidgeRegression(FOLDS)
    regression.add(x, y)
    assert torch.equal(regression.solve(old, None)[0], regression.solve(old, 0.1)[0])
