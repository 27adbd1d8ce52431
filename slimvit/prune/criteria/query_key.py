"""Scores of query/key channels: the rise of the loss without the smallest terms of the products of queries and keys.

Queries and keys are first rotated: their products become sums of terms of falling size (models/query_key.py). Let
g_i be an image's gradient of the loss with respect to a multiplier of term i, summed over the heads. Without the terms
from r on, the loss rises by the mean over images of (g_r + g_r+1 + ...)^2 / 2, to second order. The factor 1/2 is
omitted, as in residual.py, so scores of both are comparable.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimvit.data.loaders import Batches
from slimvit.models.base import AttentionBlock, TimmModule
from slimvit.models.modes import device_of, evaluating
from slimvit.models.parts.query_key import QK
from slimvit.models.query_key import (
    QueryKeySums,
    low_rank_maps,
    moments_of_weights,
    query_key_rows,
    with_own_layers,
    write_query_key,
)
from slimvit.models.registry import attention_blocks
from slimvit.prune.criteria.base import scores_part
from slimvit.prune.criteria.calibration import backward_pass
from slimvit.prune.criteria.scores import PartScores
from slimvit.utils.progress import track

UNREPAIRED = 0.3
"""Share of the rise that remains after the refit.

Measured on DeiT-T with heads and neurons cut too (500 ImageNet images left out, no training): at 0.723 of the MACs 0.3
keeps 91.2 % of the top-1 and 1.0 keeps 90.5 %; at 0.5 they keep 67.8 and 64.6 %."""


@scores_part(QK)
def query_key_scores(model: TimmModule, batches: Batches, seed: int) -> list[PartScores]:
    """Score the query/key channels of every block. Without batches the scores follow from the weights alone."""
    if not batches:
        return [_from_sizes(view) for view in attention_blocks(model)]
    rotated = copy.deepcopy(model)
    views = [view for view in attention_blocks(rotated) if QK.count(view)]
    for view in views:
        narrow = view.head_parts.narrow_qk
        assert narrow is not None
        view.block.attn = with_own_layers(view.attn, narrow)
    attentions = [view.block.attn for view in views]
    for attn, sums in zip(attentions, _moments(rotated, attentions, batches), strict=True):
        write_query_key(attn, query_key_rows(attn), low_rank_maps(sums.mean(), attn.qk_dim))
    gates: list[list[Tensor]] = [[] for _ in attentions]
    hooks = [partial(_watch, rotated, attn, into) for attn, into in zip(attentions, gates, strict=True)]
    loss = "signs" if model.num_classes else "features"
    backward_pass(rotated, batches, loss, seed, hooks, f"scoring {QK.name}")
    scores = iter([_from_gates(torch.cat(batches)) for batches in gates])
    return [next(scores) if QK.count(view) else PartScores((), (), ()) for view in attention_blocks(model)]


def _from_sizes(view: AttentionBlock) -> PartScores:
    if not QK.count(view):
        return PartScores((), (), ())
    sizes = low_rank_maps(moments_of_weights(view), view.qk_dim).sizes
    return _scores(sizes.square().sum(0).flip(0).cumsum(0).flip(0), sizes.square().sum(0))


def _from_gates(gates: Tensor) -> PartScores:
    """Scores from the gradients of all multipliers [images, channels]."""
    gates = gates.double()
    tails = gates.flip(1).cumsum(1).flip(1)  # of all terms from this one on
    return _scores(UNREPAIRED * tails.square().mean(0), UNREPAIRED * gates.square().mean(0))


def _scores(without: Tensor, alone: Tensor) -> PartScores:
    """Scores from the rise without all terms from each one on [channels], and without each alone [channels]."""
    rises = np.maximum.accumulate(without.flip(0).numpy())
    order = tuple(range(len(rises) - 1, -1, -1))
    return PartScores(order, tuple(np.diff(rises, prepend=0.0).tolist()), tuple(alone.tolist()))


def _moments(model: nn.Module, attentions: list[Any], batches: Batches) -> list[QueryKeySums]:
    """Moments of queries and keys over all images, from one forward pass."""
    sums = [QueryKeySums() for _ in attentions]
    queries: dict[int, Tensor] = {}

    def add(i: int, attn: Any, keys: Tensor) -> None:
        sums[i].add(queries.pop(i), keys, attn.num_heads)

    hooks = []
    for i, attn in enumerate(attentions):
        hooks.append(attn.q_proj.register_forward_hook(lambda _, __, q, i=i: queries.update({i: q})))
        hooks.append(attn.k_proj.register_forward_hook(lambda _, __, k, i=i, attn=attn: add(i, attn, k)))
    try:
        with evaluating(model), torch.no_grad():
            for images, _ in track(batches, f"measuring {QK.name}"):
                model(images.to(device_of(model)))
    finally:
        for hook in hooks:
            hook.remove()
    return sums


@contextmanager
def _watch(model: nn.Module, attn: Any, into: list[Tensor]) -> Iterator[None]:
    """Collect the gradients of the multipliers [B, channels] of one attention, batch by batch."""
    images = 0

    def enter(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal images
        images = len(args[0])

    def forward(_: nn.Module, args: tuple[Tensor, ...], q: Tensor) -> Tensor:
        if not q.requires_grad:  # in the first block: no layer before it has gradients
            q = q.requires_grad_()
        seen = q.detach()
        q.register_hook(lambda grad: into.append(_gates(seen, grad, images, attn.num_heads)))
        return q

    hooks = [model.register_forward_pre_hook(enter), attn.q_proj.register_forward_hook(forward)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _gates(q: Tensor, grad: Tensor, images: int, heads: int) -> Tensor:
    """Gradients of the multipliers [B, channels]; `q` and its gradient are [B * windows, N, heads * channels]."""
    return (q * grad).view(images, -1, heads, q.shape[-1] // heads).sum((1, 2)).cpu()
