"""Refit: repairing the last linear layer of every branch in closed form, block by block from the input side.

    minimise over W, b:  mean ||X W + b - Y||^2 + lambda' ||W - W0||^2,   lambda' = ridge * mean diag(cov X)
    W = (Sxx + lambda' I)^-1 (Sxy + lambda' W0),   b = mean Y - mean X W

X [tokens, k] is what enters the layer, Y [tokens, C] what the branch should produce, S the centred second moments,
W0 the weights before. A large ridge leaves the layer as it is and keeps small calibration sets safe.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from operator import length_hint

import torch
from torch import Tensor, nn

from slimvit.data.batches import checked_batches
from slimvit.data.loaders import Batches
from slimvit.models.base import Branch, State, Step
from slimvit.models.modes import device_of, evaluating
from slimvit.models.registry import steps
from slimvit.models.wrappers import check_unwrapped
from slimvit.utils.errors import PlanError
from slimvit.utils.memory import SHARE, free_bytes
from slimvit.utils.progress import log, track

TARGETS_OF_REFIT = ("own", "teacher", "stream")
TINY_SCALE = 1e-6
"""LayerScale below which a channel has no say in the stream."""


class PairedMoments:
    """Running second moments of paired rows X [n, k] and Y [n, C]: float32 products where the rows are, float64 sums
    on the CPU (not every accelerator knows float64)."""

    def __init__(self) -> None:
        self.n = 0
        self.shift: tuple[Tensor, Tensor] | None = None
        self.x = self.y = self.xx = self.xy = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows `x` [..., k] and `y` [..., C]; all leading dimensions are rows."""
        x, y = x.flatten(0, -2).float(), y.flatten(0, -2).float()  # reshape(-1, k) cannot take the k = 0 of no heads
        if self.shift is None:  # values near the mean keep float32 products exact enough
            self.shift = (x.mean(0), y.mean(0))
        x, y = x - self.shift[0], y - self.shift[1]
        self.n += len(x)
        self.x = self.x + x.sum(0).cpu().double()
        self.y = self.y + y.sum(0).cpu().double()
        self.xx = self.xx + (x.T @ x).cpu().double()
        self.xy = self.xy + (x.T @ y).cpu().double()

    def solve(self, old_weight: Tensor, ridge: float, intercept: bool = True) -> tuple[Tensor, Tensor]:
        """Weight [C, k] and bias [C] (torch's layout), float64, pulled towards the old weight [C, k].

        Without `intercept` the bias is zero and the moments are not centred.
        """
        assert self.shift is not None
        mean_x, mean_y = self.x / self.n, self.y / self.n
        sxx = self.xx / self.n - torch.outer(mean_x, mean_x)
        sxy = self.xy / self.n - torch.outer(mean_x, mean_y)
        mean_x, mean_y = mean_x + self.shift[0].cpu().double(), mean_y + self.shift[1].cpu().double()
        if not intercept:
            sxx, sxy = sxx + torch.outer(mean_x, mean_x), sxy + torch.outer(mean_x, mean_y)
            mean_x, mean_y = torch.zeros_like(mean_x), torch.zeros_like(mean_y)
        if len(sxx):  # a block without heads has no features, only a bias
            damping = ridge * sxx.diagonal().mean().clamp_min(1e-12)
            sxx = sxx + damping * torch.eye(len(sxx), dtype=sxx.dtype, device=sxx.device)
            sxy = sxy + damping * old_weight.cpu().double().T
        weight = torch.linalg.solve(sxx, sxy)
        return weight.T, mean_y - mean_x @ weight


def refit(
    model: nn.Module,
    original: nn.Module,
    batches: Batches,
    target: str = "stream",
    ridge: float = 0.1,
    cache: bool | None = None,
) -> nn.Module:
    """A copy of the pruned `model` whose `proj` and `fc2` layers make up for what was cut.

    `original`: the network before the cut. `batches`: calibration images, the same ones every time they are
    iterated. `target`: what each branch is fitted to, on the network repaired so far:

    - `own`: the block's own uncut branch on the current stream;
    - `teacher`: the original network's branch on the original stream;
    - `stream`: whatever brings the current stream back to the original's.

    `cache` keeps the token streams of all images (and one branch's features) in memory; without it memory does not
    grow with the number of images, but time grows with the square of the depth. None: as long as they take less than
    half of the free memory.
    """
    if target not in TARGETS_OF_REFIT:
        raise PlanError(f"refit target {target!r} is not known; choose from {', '.join(TARGETS_OF_REFIT)}, none")
    check_unwrapped(model)
    batches = checked_batches(batches, original)
    slim = copy.deepcopy(model)
    with evaluating(slim), evaluating(original):
        mine, theirs = steps(slim), steps(original)
        walk: _CachedWalk | _RecomputingWalk = _RecomputingWalk(mine, theirs, batches)
        if fits(theirs, batches, device_of(original)) if cache is None else cache:
            walk = _CachedWalk(mine, theirs, [x.to(device_of(original)) for x, _ in batches])
        for i in track(range(len(mine)), "refitting", unit="branches"):
            ours, uncut = mine[i], theirs[i]
            if isinstance(ours, Branch) and isinstance(uncut, Branch):
                moments = PairedMoments()
                for features, wanted in walk.visit(i, ours, uncut, target):
                    moments.add(features, wanted)
                _rewrite(ours.out, moments, ridge)
            walk.advance(i)
    return slim


class _CachedWalk:
    """Both networks' streams of every batch, moved along step by step; and the features of the branch at hand."""

    def __init__(self, mine: list[Branch | Step], theirs: list[Branch | Step], images: list[Tensor]) -> None:
        self.mine, self.theirs = mine, theirs
        self.now, self.goal = [State(x) for x in images], [State(x) for x in images]
        self.seen: list[tuple[Tensor, Tensor | None]] = []

    def visit(self, i: int, ours: Branch, uncut: Branch, target: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Features [B, N, k] and wanted outputs [B, N, C] of branch `i`, a batch at a time."""
        for b, state in enumerate(self.now):
            features, values = ours.run_with_features(state)
            wanted, self.goal[b] = _wanted(target, ours, uncut, state, self.goal[b])
            self.seen.append((features, values))
            yield features, wanted

    def advance(self, i: int) -> None:
        step = self.mine[i]
        if isinstance(step, Step):
            self.now = [step.apply(state) for state in self.now]
            self.goal = [self.theirs[i].apply(state) for state in self.goal]
            return
        self.now = [step.after(s, step.out(f), v) for s, (f, v) in zip(self.now, self.seen, strict=True)]
        self.seen = []


class _RecomputingWalk:
    """The same, from the images each time: memory does not grow with their number."""

    def __init__(self, mine: list[Branch | Step], theirs: list[Branch | Step], batches: Batches) -> None:
        self.mine, self.theirs, self.batches = mine, theirs, batches

    def visit(self, i: int, ours: Branch, uncut: Branch, target: str) -> Iterator[tuple[Tensor, Tensor]]:
        for images, _ in self.batches:
            state = goal = State(images.to(ours.out.weight.device))
            for mine, theirs in zip(self.mine[:i], self.theirs[:i], strict=True):
                state, goal = mine.apply(state), theirs.apply(goal)
            features, _ = ours.run_with_features(state)
            yield features, _wanted(target, ours, uncut, state, goal)[0]

    def advance(self, i: int) -> None:
        pass


def _wanted(target: str, ours: Branch, uncut: Branch, state: State, goal: State) -> tuple[Tensor, State]:
    """What a branch should produce before its scale [B, ..., C], and the original's state after it."""
    branch, values = uncut.run(goal)
    after = uncut.after(goal, branch, values)
    if target == "stream":
        return _before(ours.scale, after.stream - state.stream, branch), after
    if target == "own":
        branch = uncut.run(state._replace(values=goal.values))[0]
    # a constant branch has no norm behind it any more
    normed = isinstance(uncut.scale, nn.LayerNorm) and not isinstance(ours.scale, nn.LayerNorm)
    return uncut.scale(branch) if normed else branch, after


def _before(scale: Callable[[Tensor], Tensor], missing: Tensor, branch: Tensor) -> Tensor:
    """What makes `scale` give `missing` [B, ..., C]; `branch` is what it works on in the original.

    A channel whose scale is next to nothing cannot correct the stream: there it is `branch`. A norm forgets the mean
    and the size of what enters it, so they are those of `branch`, token by token.
    """
    if isinstance(scale, nn.LayerNorm):
        size = (branch.var(-1, unbiased=False, keepdim=True) + scale.eps).sqrt()
        whole = (missing - scale.bias) / scale.weight * size + branch.mean(-1, keepdim=True)
        return torch.where(scale.weight.abs() > TINY_SCALE, whole, branch)
    gamma = getattr(scale, "gamma", None)
    return missing if gamma is None else torch.where(gamma.abs() > TINY_SCALE, missing / gamma, branch)


def _rewrite(linear: nn.Linear, moments: PairedMoments, ridge: float) -> None:
    weight, bias = moments.solve(linear.weight, ridge, intercept=linear.bias is not None)
    linear.weight.copy_(weight)
    if linear.bias is not None:
        linear.bias.copy_(bias)


def fits(walk: Sequence[Branch | Step], batches: Batches, device: torch.device) -> bool:
    """Whether the streams of all `batches` in two networks and the features of one branch fit into the memory of
    `device`, of which half is left for all else; True where either is not known. That they do not is said."""
    free = free_bytes(device)
    count = length_hint(batches)
    if free is None or not count:
        return True
    first = next(iter(batches))[0]
    images = len(first) * count
    needed = images * bytes_per_image(walk, first[:1].to(device))
    if needed <= SHARE * free:
        return True
    log(
        f"refit: what it would keep of {images:,} images takes {needed / 2**30:,.1f} GiB, but {free / 2**30:,.1f} are "
        "free; it is computed anew for every branch, which takes several times as long; fewer calibration images fit"
    )
    return False


def bytes_per_image(walk: Sequence[Branch | Step], image: torch.Tensor) -> int:
    """The most that is held of one image [1, C, H, W] at any step: two streams, the features and values of a branch."""
    state, most = State(image), 0
    for step in walk:
        features = 0
        if isinstance(step, Branch):
            seen, values = step.run_with_features(state)
            features = _bytes(seen) + _bytes(values)
        most = max(most, features + 2 * sum(map(_bytes, (state.stream, *state.values))))
        state = step.apply(state)
    return most


def _bytes(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
