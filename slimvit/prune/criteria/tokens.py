"""Scores of token merging: the rise of the loss when a block merges R tokens, measured on a few images.

The stream behind each attention is merged for a few values of R, a quarter of the tokens at a time, and the rest of
the network is run on it. The rise is twice the Kullback-Leibler divergence of the predictions, without a
classifier the squared distance of the features: residual.py estimates the same to second order. Estimates by gradients
alone overrate small R and underrate large ones.

Merging one more token at a block costs what it costs when all tokens that are gone by then had gone there. So the rise
of a schedule is the sum over blocks of D(R) - D(R'), where R' tokens are gone before and R behind the block.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slimvit.data.loaders import Batches
from slimvit.models.base import AttentionBlock, Branch, State, TimmModule
from slimvit.models.linking import link_block
from slimvit.models.modes import device_of, evaluating
from slimvit.models.parts.tokens import TOKENS
from slimvit.models.registry import attention_blocks, steps
from slimvit.models.tokens.merging import unmerge
from slimvit.prune.criteria.base import scores_part
from slimvit.prune.criteria.scores import PartScores
from slimvit.utils.progress import track

IMAGES = 64
"""Images that the rises are measured on."""
SHARES = (0.04, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.93, 0.97, 1.0)
"""Shares of the tokens behind the prefix that are merged; all but one where it is 1."""
AT_ONCE = 4
"""The least similar pairs of one matching are dissimilar, so only one in so many tokens is merged before the next."""


@scores_part(TOKENS)
def token_scores(model: TimmModule, batches: Batches, seed: int) -> list[PartScores]:
    """Score the tokens that every block may merge; without batches by their number alone."""
    views = attention_blocks(model)
    if not batches:
        return [_scores(TOKENS.count(view), np.arange(_behind(view), dtype=np.float64) ** 2) for view in views]
    linked = copy.deepcopy(model)
    for view in views:
        link_block(linked, view)
    with evaluating(linked):
        curves = _rises(linked, views, _first(batches, device_of(model)))
        rises = list(track(curves, f"scoring {TOKENS.name}", len(views), unit="blocks"))
    return [_scores(TOKENS.count(view), found) for view, found in zip(views, rises, strict=True)]


def _first(batches: Batches, device: torch.device) -> Tensor:
    """The first images of the batches [B, C, H, W]."""
    found: list[Tensor] = []
    for images, _ in batches:
        found.append(images[: IMAGES - sum(map(len, found))])
        if sum(map(len, found)) >= IMAGES:
            break
    return torch.cat(found).to(device)


def _behind(view: AttentionBlock) -> int:
    """Tokens behind the prefix that the MLP of a block sees."""
    return view.mlp_tokens - view.prefix


def _scores(count: int, rises: npt.NDArray[np.float64]) -> PartScores:
    """Scores from the rise when 0, 1, 2, ... tokens are gone; there are more than the block may merge alone."""
    costs = np.diff(rises).tolist()
    return PartScores(tuple(range(count)), tuple(costs), tuple([*costs, *[0.0] * count][:count]))


def _rises(model: TimmModule, views: Sequence[AttentionBlock], images: Tensor) -> Iterator[npt.NDArray[np.float64]]:
    """Yield for every block the rise when 0, 1, 2, ... tokens are gone behind its attention."""
    walk, state, remaining = steps(model), State(images), iter(views)
    wanted = _outputs(model, _run(walk, state))
    for i, step in enumerate(walk):
        if not isinstance(step, Branch) or not step.attends:
            state = step.apply(state)
            continue
        view = next(remaining)
        found = replace(step, merges=view.merged or 1).run(state)  # with its keys
        keys = state.stream if found.keys is None else found.keys.mean(1)
        state = replace(step, merges=0).after(state, found)
        if view.merged:
            state, keys = _merge(state, keys, view.prefix, view.merged)
        stops = sorted({0, *(min(round(share * _behind(view)), _behind(view) - 1) for share in SHARES)})
        rises = [0.0]
        for stop in stops[1:]:
            merged, _ = _merge(state, keys, view.prefix, stop)
            rises.append(_rise(model, wanted, _outputs(model, _run(walk[i + 1 :], merged))))
        roots = np.sqrt(np.maximum.accumulate(rises))  # the rise grows with the square of the change, at least
        yield np.interp(np.arange(_behind(view)), stops, roots) ** 2


def _run(walk: Sequence[Any], state: State) -> State:
    """The state at the end; blocks that merge tokens themselves merge at most half of those that are left."""
    for step in walk:
        if isinstance(step, Branch) and step.merges:
            step = replace(step, merges=min(step.merges, (state.stream.shape[1] - step.prefix) // 2))
        state = step.apply(state)
    return state


def _merge(state: State, keys: Tensor, prefix: int, count: int) -> tuple[State, Tensor]:
    """The state and the keys [B, n, d] with `count` tokens fewer."""
    while count > 0:
        r = min(count, max(1, (state.stream.shape[1] - prefix) // AT_ONCE))
        stream, carried = state.carried.adding(keys).merged(state.stream, keys.unsqueeze(1), r, prefix)
        *values, last = carried.values
        assert last is not None
        state, keys, count = State(stream, carried._replace(values=tuple(values)), state.shared), last, count - r
    return state, keys


def _outputs(model: TimmModule, state: State) -> Tensor:
    """Log-probabilities [B, K]; without a classifier the features [B, C]."""
    stream = state.stream if state.carried.tokens is None else unmerge(state.stream, state.carried.tokens.sources)
    outputs: Tensor = model.forward_head(model.norm(stream), pre_logits=not model.num_classes)
    return outputs.float().log_softmax(-1) if model.num_classes else outputs.float()


def _rise(model: TimmModule, wanted: Tensor, found: Tensor) -> float:
    if model.num_classes:
        return float(2 * (wanted.exp() * (wanted - found)).sum(-1).mean())
    return float((wanted - found).square().sum(-1).mean())
