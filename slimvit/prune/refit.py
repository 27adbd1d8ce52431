"""Refit of the last linear layer of every branch in closed form (ridge regression), from the first block to the last.

    minimise over W, b:  mean ||X W + b - Y||^2 + lambda' ||W - W0||^2,   lambda' = ridge * mean diag(cov X)
    W = (Sxx + lambda' I)^-1 (Sxy + lambda' W0),   b = mean Y - mean X W

X [tokens, k] are the inputs of the layer. Y [tokens, C] are the wanted outputs of the branch. Sxx and Sxy are the
centred second moments. W0 are the weights before the refit. A large ridge keeps W near W0, for few calibration images.
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
from slimvit.models.registry import check_unwrapped, steps
from slimvit.utils.device import SHARE, free_bytes
from slimvit.utils.errors import PlanError
from slimvit.utils.progress import log, track

TARGETS_OF_REFIT = ("own", "teacher", "stream")
TINY_SCALE = 1e-6
"""LayerScale below which a channel cannot correct the stream."""


class PairedMoments:
    """Running second moments of paired rows X [n, k] and Y [n, C].

    Products are float32 on the device of the rows; sums are float64 on the CPU, since some accelerators lack float64.
    """

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
        """Solve the ridge regression.

        Args:
            old_weight: The weight [C, k] that the solution is pulled towards.
            ridge: Strength of that pull, in units of the mean variance of X.
            intercept: Without it the bias is zero and the moments are not centred.

        Returns:
            Weight [C, k] and bias [C] in torch's layout, float64.
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
    """Copy the pruned model and refit its `proj` and `fc2` layers, so that they compensate for the cut.

    Args:
        model: The pruned model.
        original: The model before the cut.
        batches: Calibration images [B, C, H, W] with labels [B], the same in every pass.
        target: The wanted output of each branch, given the stream of the model refitted so far. `own`: the output of
            the uncut branch on that stream. `teacher`: the output of the original model on its own stream. `stream`:
            the output after which both streams are equal.
        ridge: Pull towards the old weights, in units of the mean variance of the inputs.
        cache: Whether to keep the token streams of all images in memory. Without it memory does not grow with the
            number of images, but time grows with the square of the depth. None caches if the streams take less than
            half of the free memory.

    Returns:
        A new model.

    Raises:
        PlanError: The target is not known.
        DataError: The batches do not fit the model.
    """
    if target not in TARGETS_OF_REFIT:
        raise PlanError(f"refit target {target!r} is not known; choose from {', '.join(TARGETS_OF_REFIT)}, none")
    check_unwrapped(model)
    batches = checked_batches(batches, original)
    slim = copy.deepcopy(model)
    with evaluating(slim), evaluating(original):
        own, whole = steps(slim), steps(original)
        walk: _CachedWalk | _RecomputingWalk = _RecomputingWalk(own, whole, batches)
        if fits(whole, batches, device_of(original)) if cache is None else cache:
            walk = _CachedWalk(own, whole, [x.to(device_of(original)) for x, _ in batches])
        for i in track(range(len(own)), "refitting", unit="layers"):
            branch, uncut = own[i], whole[i]
            if isinstance(branch, Branch) and isinstance(uncut, Branch):
                moments = PairedMoments()
                for features, wanted in walk.visit(i, branch, uncut, target):
                    moments.add(features, wanted)
                _rewrite(branch.out, moments, ridge)
            walk.advance(i)
    return slim


class _CachedWalk:
    """Both models' streams of every batch, moved from step to step, and the features of the present branch."""

    def __init__(self, own: list[Branch | Step], whole: list[Branch | Step], images: list[Tensor]) -> None:
        self.own, self.whole = own, whole
        self.now, self.goal = [State(x) for x in images], [State(x) for x in images]
        self.seen: list[tuple[Tensor, Tensor | None]] = []

    def visit(self, i: int, branch: Branch, uncut: Branch, target: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the features [B, N, k] and wanted outputs [B, N, C] of branch `i`, batch by batch."""
        for b, state in enumerate(self.now):
            features, values = branch.run_with_features(state)
            wanted, self.goal[b] = _wanted(target, branch, uncut, state, self.goal[b])
            self.seen.append((features, values))
            yield features, wanted

    def advance(self, i: int) -> None:
        step = self.own[i]
        if isinstance(step, Step):
            self.now = [step.apply(state) for state in self.now]
            self.goal = [self.whole[i].apply(state) for state in self.goal]
            return
        self.now = [step.after(s, step.out(f), v) for s, (f, v) in zip(self.now, self.seen, strict=True)]
        self.seen = []


class _RecomputingWalk:
    """The same, computed from the images for every branch: memory does not grow with their number."""

    def __init__(self, own: list[Branch | Step], whole: list[Branch | Step], batches: Batches) -> None:
        self.own, self.whole, self.batches = own, whole, batches

    def visit(self, i: int, branch: Branch, uncut: Branch, target: str) -> Iterator[tuple[Tensor, Tensor]]:
        for images, _ in self.batches:
            state = goal = State(images.to(branch.out.weight.device))
            for own, whole in zip(self.own[:i], self.whole[:i], strict=True):
                state, goal = own.apply(state), whole.apply(goal)
            features, _ = branch.run_with_features(state)
            yield features, _wanted(target, branch, uncut, state, goal)[0]

    def advance(self, i: int) -> None:
        pass


def _wanted(target: str, ours: Branch, uncut: Branch, state: State, goal: State) -> tuple[Tensor, State]:
    """The wanted output of a branch before its scale [B, ..., C], and the original's state after the branch."""
    branch, values = uncut.run(goal)
    after = uncut.after(goal, branch, values)
    if target == "stream":
        return _before(ours.scale, after.stream - state.stream, branch), after
    if target == "own":
        branch = uncut.run(state._replace(values=goal.values))[0]
    # the norm behind an empty branch was removed with its units
    normed = isinstance(uncut.scale, nn.LayerNorm) and not isinstance(ours.scale, nn.LayerNorm)
    return uncut.scale(branch) if normed else branch, after


def _before(scale: Callable[[Tensor], Tensor], missing: Tensor, branch: Tensor) -> Tensor:
    """The input of `scale` for which it outputs `missing` [B, ..., C]: its inverse.

    `branch` [B, ..., C] is its input in the original. It replaces the inverse in channels whose scale is almost zero.
    A norm discards the mean and the variance of its input, so both are taken from `branch`, token by token.
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
    """Return whether the cache of a refit fits into half of the free memory of `device`, and log where it does not.

    The cache holds the streams of all batches in two models and the features of one branch. True where the free
    memory or the number of batches is not known.
    """
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
        f"refit: the streams of {images:,} images take {needed / 2**30:,.1f} GiB, but {free / 2**30:,.1f} are free; "
        "they are computed again for every branch, which takes several times as long; use fewer calibration images"
    )
    return False


def bytes_per_image(walk: Sequence[Branch | Step], image: torch.Tensor) -> int:
    """Return the most bytes that the cache holds of one image [1, C, H, W] at any step.

    It holds two streams, and the features and values of one branch.
    """
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
