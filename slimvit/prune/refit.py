"""Refit: solves the last linear layer of every branch again by ridge regression, from the first block to the last.

ridge.py has the regression. X [tokens, k] are the inputs of the layer in the pruned model. Y [tokens, C] are the target
outputs of the branch, such as those that bring the residual stream back to the original's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import length_hint

import torch
from torch import Tensor, nn

from slimvit.data.batches import checked_batches
from slimvit.data.loaders import Batches
from slimvit.models.base import Attended, AttentionBlock, Branch, Carried, State, Step, TimmModule
from slimvit.models.block_plan import BlockPlan
from slimvit.models.modes import device_of, evaluating
from slimvit.models.parts.registry import PARTS
from slimvit.models.registry import attention_blocks, check_unwrapped, plan_of, steps
from slimvit.models.tokens.merging import group_means, unmerge
from slimvit.prune.ridge import FOLDS, RidgeRegression
from slimvit.utils.device import SHARE, free_bytes
from slimvit.utils.errors import PlanError
from slimvit.utils.progress import log, track

TARGETS_OF_REFIT = ("own", "teacher", "stream")
TINY_SCALE = 1e-6
"""Smallest absolute LayerScale through which the refit corrects a channel."""

Visit = tuple[Tensor, Tensor, Carried]
"""Features [B, ..., k] and target outputs [B, ..., C] of a branch, and what the pruned model carries there."""


def refit(
    model: nn.Module,
    original: nn.Module,
    batches: Batches,
    target: str = "stream",
    ridge: float | None = 0.1,
    class_token: float = 1.0,
    cache: bool | None = None,
) -> nn.Module:
    """Copy the pruned model and refit its `proj` and `fc2` layers to compensate for the cut.

    Args:
        model: The pruned model.
        original: The model before the cut.
        batches: Calibration images [B, C, H, W] with labels [B], the same in every pass.
        target: Target output of each branch. `own`: the uncut branch's output on the refitted model's stream.
            `teacher`: the branch's output in the original model. `stream`: the output that makes the refitted model's
            stream equal to the original's.
        ridge: Pull towards the old weights, in units of the mean variance of the inputs. None chooses it layer by
            layer, by the error on images that are left out.
        class_token: Weight of the class token in the regression, where each other token has 1. Used for models that
            classify by their class token.
        cache: Whether to keep the token streams of all images in memory. Without the cache, time grows with the square
            of the depth. None caches if the streams take less than half of the free memory.

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
        slim_steps, original_steps = steps(slim), steps(original)
        approximated = iter(_approximated(slim, original))
        walk: _CachedWalk | _RecomputingWalk = _RecomputingWalk(slim_steps, original_steps, batches)
        if fits(original_steps, batches, device_of(original)) if cache is None else cache:
            walk = _CachedWalk(slim_steps, original_steps, [x.to(device_of(original)) for x, _ in batches])
        for i in track(range(len(slim_steps)), "refitting", unit="layers"):
            branch, uncut = slim_steps[i], original_steps[i]
            if isinstance(branch, Branch) and isinstance(uncut, Branch):
                if branch.attends:
                    next(approximated)(branch.norm(stream) for stream in walk.streams(i))
                regression = RidgeRegression(FOLDS if ridge is None else 1)
                for features, outputs, carried in walk.visit(i, branch, uncut, target):
                    regression.add(features, outputs, _token_weights(original, features, class_token, carried))
                _rewrite(branch.out, regression, ridge)
            walk.advance(i)
    return slim


def _approximated(slim: nn.Module, original: nn.Module) -> Iterator[Callable[[Iterable[Tensor]], None]]:
    """Yield for every block what adapts the parts that its cut has approximated, given the inputs of its attention."""
    views, plans = (attention_blocks(slim), attention_blocks(original)), (plan_of(slim), plan_of(original))
    for view, uncut, kept, before in zip(*views, plans[0].blocks, plans[1].blocks, strict=True):
        yield partial(_recalibrate, view, uncut, kept, before)


def _recalibrate(
    view: AttentionBlock, uncut: AttentionBlock, plan: BlockPlan, before: BlockPlan, inputs: Iterable[Tensor]
) -> None:
    for name, part in PARTS.items():
        if part.within is not None and 0 < len(plan.of(name).kept) < len(before.of(name).kept):
            outer = part.within.name
            place = {unit: i for i, unit in enumerate(before.of(outer).kept)}
            part.recalibrate(view, uncut, [place[unit] for unit in plan.of(outer).kept], inputs)


def _token_weights(model: TimmModule, features: Tensor, class_token: float, carried: Carried) -> Tensor | None:
    """Weights of the present tokens [B, n]: the number of original ones in each; None for equal ones."""
    sizes = None if carried.tokens is None else carried.tokens.sizes
    if class_token == 1 or features.ndim != 3 or getattr(model, "global_pool", "") != "token":
        return sizes
    weights = features.new_ones(features.shape[:2]) if sizes is None else sizes.clone()
    weights[:, 0] = class_token
    return weights


class _CachedWalk:
    """A walk that caches the streams of all batches in both models, and the features of the current branch."""

    def __init__(self, slim: list[Branch | Step], original: list[Branch | Step], images: list[Tensor]) -> None:
        self.slim, self.original = slim, original
        self.slim_states, self.original_states = [State(x) for x in images], [State(x) for x in images]
        self.features: list[Attended] = []

    def visit(self, i: int, branch: Branch, uncut: Branch, target: str) -> Iterator[Visit]:
        """Yield the features and target outputs of branch `i`, batch by batch."""
        for b, state in enumerate(self.slim_states):
            features, found = branch.run_with_features(state)
            outputs, self.original_states[b] = _target_output(target, branch, uncut, state, self.original_states[b])
            self.features.append(found._replace(output=features))
            yield features, outputs, state.carried

    def streams(self, _: int) -> Iterator[Tensor]:
        """Yield the streams [B, ..., C] of the refitted model before the present step, batch by batch."""
        return (state.stream for state in self.slim_states)

    def advance(self, i: int) -> None:
        """Apply step `i`, with the branch refitted."""
        step = self.slim[i]
        if isinstance(step, Step):
            self.slim_states = [step.apply(state) for state in self.slim_states]
            self.original_states = [self.original[i].apply(state) for state in self.original_states]
            return
        pairs = zip(self.slim_states, self.features, strict=True)
        self.slim_states = [step.after(state, found._replace(output=step.out(found.output))) for state, found in pairs]
        self.features = []


class _RecomputingWalk:
    """A walk that computes the streams again for every branch. Its memory does not grow with the number of images."""

    def __init__(self, slim: list[Branch | Step], original: list[Branch | Step], batches: Batches) -> None:
        self.slim, self.original, self.batches = slim, original, batches
        self.device = next(step.out.weight.device for step in original if isinstance(step, Branch))

    def visit(self, i: int, branch: Branch, uncut: Branch, target: str) -> Iterator[Visit]:
        for images, _ in self.batches:
            state = original_state = State(images.to(self.device))
            for step, original_step in zip(self.slim[:i], self.original[:i], strict=True):
                state, original_state = step.apply(state), original_step.apply(original_state)
            features, _ = branch.run_with_features(state)
            yield features, _target_output(target, branch, uncut, state, original_state)[0], state.carried

    def streams(self, i: int) -> Iterator[Tensor]:
        """Yield the streams [B, ..., C] of the refitted model before step `i`, batch by batch."""
        for images, _ in self.batches:
            state = State(images.to(self.device))
            for step in self.slim[:i]:
                state = step.apply(state)
            yield state.stream

    def advance(self, i: int) -> None:
        pass


def _target_output(
    target: str, branch: Branch, uncut: Branch, state: State, original_state: State
) -> tuple[Tensor, State]:
    """The target output of a branch before its scale [B, ..., C], and the original's state after the branch."""
    found = uncut.run(original_state)
    after = uncut.after(original_state, found)
    output = _grouped(_unmerged(found.output, original_state.carried), state.carried)
    if target == "stream":
        wanted = _grouped(_unmerged(after.stream, after.carried), state.carried)
        return _inverse_scale(branch.scale, wanted - state.stream, output), after
    if target == "own":
        values = (None if v is None else _unmerged(v, original_state.carried) for v in original_state.carried.values)
        whole = State(_unmerged(state.stream, state.carried), Carried(tuple(values)), state.shared)
        output = _grouped(uncut.run(whole).output, state.carried)
    # the norm behind an empty branch was removed with its units
    lost_norm = isinstance(uncut.scale, nn.LayerNorm) and not isinstance(branch.scale, nn.LayerNorm)
    return uncut.scale(output) if lost_norm else output, after


def _unmerged(x: Tensor, carried: Carried) -> Tensor:
    """Features of the present tokens, copied to the places of the original ones."""
    return x if carried.tokens is None else unmerge(x, carried.tokens.sources)


def _grouped(x: Tensor, carried: Carried) -> Tensor:
    """Features of the original tokens, averaged over those that are merged."""
    return x if carried.tokens is None else group_means(x, carried.tokens)


def _inverse_scale(scale: Callable[[Tensor], Tensor], scaled: Tensor, output: Tensor) -> Tensor:
    """The input for which `scale` returns `scaled` [B, ..., C].

    Channels whose scale is almost zero have no inverse; they get `output` [B, ..., C], the input of `scale` in the
    original. A norm discards the mean and the variance of each token, so both are taken from `output`.
    """
    if isinstance(scale, nn.LayerNorm):
        std = (output.var(-1, unbiased=False, keepdim=True) + scale.eps).sqrt()
        inverse = (scaled - scale.bias) / scale.weight * std + output.mean(-1, keepdim=True)
        return torch.where(scale.weight.abs() > TINY_SCALE, inverse, output)
    gamma = getattr(scale, "gamma", None)
    return scaled if gamma is None else torch.where(gamma.abs() > TINY_SCALE, scaled / gamma, output)


def _rewrite(linear: nn.Linear, regression: RidgeRegression, ridge: float | None) -> None:
    weight, bias = regression.solve(linear.weight, ridge, intercept=linear.bias is not None)
    linear.weight.copy_(weight)
    if linear.bias is not None:
        linear.bias.copy_(bias)


def fits(walk: Sequence[Branch | Step], batches: Batches, device: torch.device) -> bool:
    """Return whether the cache of a refit fits into half of the free memory of `device`; log if it does not.

    The cache holds the streams of all batches in two models and the features of one branch. The result is True if the
    free memory or the number of batches is unknown.
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
    """Return the peak bytes of the cache for one image [1, C, H, W]: two streams, features and values of one branch."""
    state, peak = State(image), 0
    for step in walk:
        features = 0
        if isinstance(step, Branch):
            inputs, found = step.run_with_features(state)
            features = _bytes(inputs) + _bytes(found.values) + _bytes(found.keys)
        peak = max(peak, features + 2 * sum(map(_bytes, (state.stream, *state.carried.values))))
        state = step.apply(state)
    return peak


def _bytes(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
