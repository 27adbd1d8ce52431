"""The mathematics of dense attention (Li, Chen, Zhao: Dense Attention, IJCNN 2023), on plain tensors.

    out_l = A_l V_l + sum over i < l of w_li A_l V_i = A_l (V_l + sum over i < l of w_li V_i)

Attention is linear in the values, so they are mixed first and attended to once. A head meets itself: values are
aligned by original head id, and two blocks that share no head do not mix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1 << 18
"""Numbers of one block's values that are mixed at a time on a CPU, so that the sum stays in the cache."""


@dataclass(frozen=True)
class Pair:
    """An earlier block of the stage, and the heads that it shares with the block that mixes."""

    earlier: int
    """Position of the earlier block in its stage."""
    heads: tuple[int, ...]
    """Original ids of the shared heads."""
    here: tuple[int, ...]
    """Their positions in the block that mixes."""
    there: tuple[int, ...]
    """Their positions in the earlier block."""

    @property
    def runs(self) -> tuple[tuple[int, int, int], ...]:
        """(position here, position there, number of heads) of each run of heads that lie side by side in both."""
        found: list[tuple[int, int, int]] = []
        for here, there in zip(self.here, self.there, strict=True):
            if found and (here, there) == (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]):
                found[-1] = (*found[-1][:2], found[-1][2] + 1)
            else:
                found.append((here, there, 1))
        return tuple(found)


def pairs_of(kept: Sequence[Sequence[int]]) -> list[tuple[Pair, ...]]:
    """For each block of a stage, its pairs with earlier blocks; ``kept``: the original head ids each block has."""
    return [
        tuple(
            Pair(i, shared, tuple(map(list(mine).index, shared)), tuple(map(list(theirs).index, shared)))
            for i, theirs in enumerate(kept[:block])
            if (shared := tuple(h for h in mine if h in theirs))
        )
        for block, mine in enumerate(kept)
    ]


def mix_size(pairs: Sequence[Pair], per_head: bool) -> int:
    """Learnable scalars of one block: one a pair, or one a pair and shared head."""
    return sum(len(p.heads) for p in pairs) if per_head else len(pairs)


def mix_values(
    own: Tensor, earlier: Sequence[Tensor], pairs: Sequence[Pair], mix: Tensor, per_head: bool, head_dim: int
) -> Tensor:
    """``own`` + sum of the weighted values of earlier blocks.

    ``own`` [..., k], ``earlier``: one tensor [..., k_i] a pair, in the order of ``pairs``; channels are heads of
    ``head_dim``. ``mix``: one scalar a pair, or with ``per_head`` one a pair and shared head, pair after pair.
    """
    weights = _channel_weights(mix.to(own.dtype), pairs, per_head, head_dim)
    slices = [[(a * head_dim, b * head_dim, n * head_dim) for a, b, n in pair.runs] for pair in pairs]
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # compilers fuse the plain form better than we can
        out = own.clone()
        _add(out, earlier, slices, weights)
        return out
    return _Mix.apply(own, slices, len(pairs), *earlier, *weights)


def _channel_weights(mix: Tensor, pairs: Sequence[Pair], per_head: bool, head_dim: int) -> list[Tensor]:
    """One weight tensor a pair: a scalar [1], or [channels of the shared heads]."""
    if not per_head:
        return list(mix.split(1))
    return [part.repeat_interleave(head_dim) for part in mix.split([len(p.heads) for p in pairs])]


Slices = list[list[tuple[int, int, int]]]


def _add(out: Tensor, earlier: Sequence[Tensor], slices: Slices, weights: Sequence[Tensor]) -> None:
    """In place: the weighted channels of each earlier block onto theirs in ``out``."""
    for values, runs, weight in zip(earlier, slices, weights, strict=True):
        done = 0
        for here, there, n in runs:
            part = weight if len(weight) == 1 else weight[done : done + n]
            out[..., here : here + n].addcmul_(values[..., there : there + n], part)
            done += n


class _Mix(torch.autograd.Function):
    """The sum with a backward of its own: nothing is kept but the values themselves, and both directions walk through
    chunks that fit the cache."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, slices: Slices, count: int, *tensors: Tensor) -> Tensor:
        earlier, weights = tensors[:count], tensors[count:]
        ctx.save_for_backward(*tensors)
        ctx.slices = slices
        out = own.clone(memory_format=torch.contiguous_format)
        rows = [t.reshape(-1, t.shape[-1]) for t in (out, *earlier)]
        ctx.whole = _whole(rows, slices, weights)
        for chunk in _chunks(out):
            parts = [r[chunk] for r in rows]
            if ctx.whole:
                parts[0].view(-1).addmv_(_columns(parts[1:]), torch.cat(weights))
            else:
                _add(parts[0], parts[1:], slices, weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        tensors, slices = ctx.saved_tensors, ctx.slices
        count = len(slices)
        earlier, weights = tensors[:count], tensors[count:]
        if ctx.whole:
            return grad, None, None, *_whole_backward(grad, earlier, weights)
        grads = [torch.zeros_like(v, memory_format=torch.contiguous_format) for v in earlier]
        weight_grads = [torch.zeros_like(w, dtype=_exact(w)) for w in weights]
        g = grad.reshape(-1, grad.shape[-1])
        rows = [v.reshape(-1, v.shape[-1]) for v in earlier]
        grad_rows = [v.view(-1, v.shape[-1]) for v in grads]
        for chunk in _chunks(grad):
            _add_backward(
                g[chunk], [r[chunk] for r in rows], slices, weights, [r[chunk] for r in grad_rows], weight_grads
            )
        return grad, None, None, *grads, *(g.to(w.dtype) for g, w in zip(weight_grads, weights, strict=True))


def _whole(rows: Sequence[Tensor], slices: Slices, weights: Sequence[Tensor]) -> bool:
    """Whether every pair shares all of its heads in the same places and has one weight: then the sum is one product
    of a matrix, the values as its columns, and the vector of the weights."""
    width = rows[0].shape[-1]
    aligned = all(r.shape[-1] == width and runs == [(0, 0, width)] for r, runs in zip(rows[1:], slices, strict=True))
    return aligned and all(len(w) == 1 for w in weights)


def _columns(parts: Sequence[Tensor]) -> Tensor:
    """Tensors [rows, k] as the columns of one matrix [rows * k, tensors]."""
    return torch.stack(list(parts)).view(len(parts), -1).T


def _whole_backward(grad: Tensor, earlier: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the earlier values and of the weights."""
    w = torch.cat(list(weights))
    rows = [v.reshape(-1, v.shape[-1]) for v in earlier]
    g = grad.reshape(-1, grad.shape[-1])
    grads = torch.outer(w, g.reshape(-1)).view(len(w), *grad.shape)
    weight_grads = torch.zeros_like(w, dtype=_exact(w))
    for chunk in _chunks(grad):
        weight_grads += _columns([r[chunk] for r in rows]).T @ g[chunk].reshape(-1)
    return [*grads.unbind(0), *weight_grads.to(w.dtype).split(1)]


def _add_backward(
    grad: Tensor, earlier: Sequence[Tensor], slices: Slices, weights: Sequence[Tensor],
    grads: Sequence[Tensor], weight_grads: Sequence[Tensor],
) -> None:  # fmt: skip
    """In place: onto the gradients of the earlier values and of the weights."""
    for values, runs, weight, into, weight_into in zip(earlier, slices, weights, grads, weight_grads, strict=True):
        done, exact = 0, weight_into.dtype
        for here, there, n in runs:
            g, v, scalar = grad[:, here : here + n], values[:, there : there + n], len(weight) == 1
            part = slice(0, 1) if scalar else slice(done, done + n)
            torch.mul(g, weight[part], out=into[:, there : there + n])
            product = g * v
            weight_into[part] += product.sum(dtype=exact) if scalar else product.sum(0, dtype=exact)
            done += n


def _exact(like: Tensor) -> torch.dtype:
    """Half precision is too coarse to add up many chunks in."""
    return torch.promote_types(like.dtype, torch.float32)


def _chunks(like: Tensor) -> list[slice]:
    """Rows (tokens) of ``like`` in chunks; all at once where there is no cache to mind."""
    rows = like.numel() // max(1, like.shape[-1])
    step = max(1, CHUNK // max(1, like.shape[-1])) if like.device.type == "cpu" else max(1, rows)
    return [slice(start, start + step) for start in range(0, rows, step)]
