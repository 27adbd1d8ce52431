"""Refit: repairing the last linear layer of every branch in closed form, block by block from the input side.

    minimise over W, b:  mean ||X W + b - Y||^2 + lambda' ||W - W0||^2,   lambda' = ridge * mean diag(cov X)
    W = (Sxx + lambda' I)^-1 (Sxy + lambda' W0),   b = mean Y - mean X W

X [tokens, k] is what enters the layer, Y [tokens, C] what the branch should produce, S the centred second moments,
W0 the weights before. A large ridge leaves the layer as it is and keeps small calibration sets safe.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from slimvit.errors import DataError, PlanError
from slimvit.models.family import Branch, Step, steps
from slimvit.progress import track
from slimvit.prune.observe import Batches

TARGETS = ("own", "teacher", "stream")


class Moments:
    """Running second moments of paired rows X [n, k] and Y [n, C]: float32 products, float64 sums."""

    def __init__(self) -> None:
        self.n = 0.0
        self.shift: tuple[Tensor, Tensor] | None = None
        self.x = self.y = self.xx = self.xy = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        x, y = x.reshape(-1, x.shape[-1]).float(), y.reshape(-1, y.shape[-1]).float()
        if self.shift is None:  # near the mean is enough to keep float32 products exact
            self.shift = (x.mean(0), y.mean(0))
        x, y = x - self.shift[0], y - self.shift[1]
        if weight is None:
            self.n += len(x)
            xw = x
            yw = y
        else:
            w = weight.reshape(-1, 1)
            self.n += float(w.double().sum())
            xw = x * w
            yw = y * w
        self.x = self.x + xw.sum(0).double()
        self.y = self.y + yw.sum(0).double()
        self.xx = self.xx + (xw.T @ x).double()
        self.xy = self.xy + (xw.T @ y).double()

    def solve(self, old_weight: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """Weight [C, k] and bias [C] (torch's layout), float64, from the old weight [C, k]."""
        assert self.shift is not None
        mx, my = self.x / self.n, self.y / self.n
        sxx = self.xx / self.n - torch.outer(mx, mx)
        sxy = self.xy / self.n - torch.outer(mx, my)
        k = len(sxx)
        damping = ridge * sxx.diagonal().mean().clamp_min(1e-12) if k else 0.0
        eye = torch.eye(k, dtype=torch.float64, device=sxx.device)
        weight = torch.linalg.solve(sxx + damping * eye, sxy + damping * old_weight.double().T)
        bias = my + self.shift[1].double() - (mx + self.shift[0].double()) @ weight
        return weight.T, bias


class _Streams:
    """The residual stream of every calibration batch on its way through the steps of one network.

    Cached: one tensor a batch, moved along. Not cached: every access runs the images through the steps again, so
    memory does not grow with the number of images but time grows with the square of the depth.
    """

    def __init__(self, route: list[Branch | Step], batches: Batches, cache: bool) -> None:
        self.route, self.batches = route, batches
        self.device = next(p.device for s in route if isinstance(s, Branch) for p in s.body.parameters())
        self.cached = [images.to(self.device) for images, _ in batches] if cache else None

    def before(self, i: int) -> Iterator[Tensor]:
        """What enters step ``i``, a batch at a time: [B, N, C]."""
        if self.cached is not None:
            yield from self.cached
            return
        for images, _ in self.batches:
            x = images.to(self.device)
            for step in self.route[:i]:
                x = step.apply(x)
            yield x

    def advance(self, i: int) -> None:
        if self.cached is not None:
            for b, x in enumerate(self.cached):
                self.cached[b] = self.route[i].apply(x)


def refit(
    model: nn.Module,
    original: nn.Module,
    batches: Batches,
    target: str = "stream",
    ridge: float = 0.3,
    cache: bool = True,
) -> nn.Module:
    """A copy of the pruned ``model`` whose ``proj`` and ``fc2`` layers make up for what was cut.

    ``original``: the network before the cut. ``batches``: calibration images, iterable more than once, the same
    images each time. ``target``: what each branch is fitted to, on the network repaired so far:

    - ``own``: the block's own uncut branch on the current stream;
    - ``teacher``: the original network's branch on the original stream;
    - ``stream``: whatever brings the current stream back to the original's.

    ``cache`` keeps the token streams of all images in memory; without it memory does not grow with the images.
    """
    if target not in TARGETS:
        raise PlanError(f"refit target {target!r} is not known; choose from {', '.join(TARGETS)}, none")
    slim = copy.deepcopy(model)
    training = [(net, net.training) for net in (slim, original)]
    try:
        with torch.no_grad():
            _walk(slim.eval(), original.eval(), batches, target, ridge, cache)
    finally:
        for net, was in training:
            net.train(was)
    return slim


def _walk(slim: nn.Module, original: nn.Module, batches: Batches, target: str, ridge: float, cache: bool) -> None:
    """From the input side, one step of both networks at a time; branches of ``slim`` are refitted in place."""
    mine, theirs = steps(slim), steps(original)
    now, reference = _Streams(mine, batches, cache), _Streams(theirs, batches, cache)
    for i in track(range(len(mine)), "refitting branches"):
        ours, uncut = mine[i], theirs[i]
        if isinstance(ours, Branch) and isinstance(uncut, Branch):
            moments = Moments()
            for stream, goal in zip(now.before(i), reference.before(i), strict=True):
                _, x = ours.run_with_features(stream)
                moments.add(x, _target(target, uncut, stream, goal))
            _rewrite(ours.out, *moments.solve(ours.out.weight, ridge))
        now.advance(i)
        reference.advance(i)


def _target(kind: str, uncut: Branch, stream: Tensor, goal: Tensor) -> Tensor:
    """What the branch should produce before its LayerScale, [B, N, C]."""
    if kind == "own":
        return uncut.run(stream)
    if kind == "teacher":
        return uncut.run(goal)
    gamma = getattr(uncut.scale, "gamma", None)
    gap = uncut.apply(goal) - stream
    return gap if gamma is None else gap / gamma


def _rewrite(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    linear.weight.copy_(weight)
    if linear.bias is None:
        linear.bias = nn.Parameter(bias.to(linear.weight))
    else:
        linear.bias.copy_(bias)
