"""The mathematics of dense attention (Li, Chen, Zhao: Dense Attention, IJCNN 2023), on plain tensors.

    out_l = A_l V_l + sum over i < l of w_li A_l V_i = A_l (V_l + sum over i < l of w_li V_i)

Attention is linear in the values, so they are mixed first and attended to once. Values are mixed between heads of the
same original id; two blocks that share no head do not mix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 1 << 18
"""Elements of one block's values that are mixed at a time on a CPU, so that the sum stays in the cache."""


@dataclass(frozen=True)
class Pair:
    """An earlier block of the stage and the heads that it shares with the mixing block."""

    earlier: int
    """Position of the earlier block in its stage."""
    heads: tuple[int, ...]
    """Original ids of the shared heads."""
    here: tuple[int, ...]
    """Their positions in the mixing block."""
    there: tuple[int, ...]
    """Their positions in the earlier block."""

    whole: bool = False
    """Whether the shared heads are all heads of both blocks, so that no channels need to be selected."""
    runs: tuple[tuple[int, int, int], ...] = field(init=False, repr=False)
    """(position here, position there, number of heads) of each run of heads that are adjacent in both blocks."""

    def __post_init__(self) -> None:
        runs: list[tuple[int, int, int]] = []
        for here, there in zip(self.here, self.there, strict=True):
            if runs and (here, there) == (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]):
                runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
            else:
                runs.append((here, there, 1))
        object.__setattr__(self, "runs", tuple(runs))


def pairs_of(kept: Sequence[Sequence[int]]) -> list[tuple[Pair, ...]]:
    """Return the pairs of each block of a stage with earlier blocks; `kept` holds each block's original head ids."""
    return [
        tuple(
            Pair(
                i,
                shared,
                tuple(map(list(own).index, shared)),
                tuple(map(list(earlier).index, shared)),
                len(shared) == len(own) == len(earlier),
            )
            for i, earlier in enumerate(kept[:block])
            if (shared := tuple(h for h in own if h in earlier))
        )
        for block, own in enumerate(kept)
    ]


def mix_size(pairs: Sequence[Pair], per_head: bool) -> int:
    """Count the learnable weights of one block: one per pair, or one per pair and shared head."""
    return sum(len(p.heads) for p in pairs) if per_head else len(pairs)


def mix_values(
    own: Tensor, earlier: Sequence[Tensor], pairs: Sequence[Pair], mix: Tensor, per_head: bool, head_dim: int
) -> Tensor:
    """Add the weighted values of earlier blocks to a block's own values.

    Args:
        own: The block's own values [..., k], whose channels are heads of `head_dim`.
        earlier: The values [..., k_i] of each pair's block, in the order of `pairs`.
        pairs: The earlier blocks and the shared heads.
        mix: Weights [pairs], or with `per_head` [pairs x shared heads], pair after pair.
        per_head: Whether every shared head has a weight of its own.
        head_dim: Channels of one head.

    Returns:
        The mixed values [..., k].
    """
    weights = mix.to(own.dtype)
    if per_head:
        weights = weights.repeat_interleave(head_dim)
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # compilers fuse the plain form better
        return _plain_sum(own, earlier, pairs, _by_pair(weights, pairs, head_dim), head_dim)
    if not torch.is_grad_enabled():
        return _sum(own, earlier, pairs, weights, head_dim)
    return _Mix.apply(own, pairs, head_dim, weights, *earlier)


def _by_pair(weights: Tensor, pairs: Sequence[Pair], head_dim: int) -> Sequence[Tensor]:
    """Each pair's part of the weights: a scalar [1], or [channels of the shared heads]."""
    if len(weights) == len(pairs):
        return weights.split(1)
    return weights.split([len(p.heads) * head_dim for p in pairs])


def _factors(weights: Tensor, pairs: Sequence[Pair], head_dim: int) -> Sequence[Tensor | float]:
    """`_by_pair`, with Python numbers for scalars on a CPU.

    Adding a multiple is much faster than adding a product with a tensor of one element, but on a GPU reading the
    number would wait for the device.
    """
    if weights.device.type == "cpu" and len(weights) == len(pairs) and type(weights) in (Tensor, nn.Parameter):
        return [float(w) for w in weights.tolist()]
    return _by_pair(weights, pairs, head_dim)


def _sum(own: Tensor, earlier: Sequence[Tensor], pairs: Sequence[Pair], weights: Tensor, head_dim: int) -> Tensor:
    out = own.clone(memory_format=torch.contiguous_format)
    factors = _factors(weights, pairs, head_dim)
    if out.numel() <= CHUNK:  # for one image Python costs as much as the sums
        _add(out, earlier, pairs, factors, head_dim)
        return out
    for part, *sources in _chunks(out, *earlier):
        _add(part, sources, pairs, factors, head_dim)
    return out


def _plain_sum(
    own: Tensor, earlier: Sequence[Tensor], pairs: Sequence[Pair], factors: Sequence[Tensor], head_dim: int
) -> Tensor:
    """The sum over whole tensors, for export, where a write to a part of a tensor becomes a slow scatter."""
    out, width = own, own.shape[-1]
    for values, pair, factor in zip(earlier, pairs, factors, strict=True):
        done = 0
        for here, there, n in pair.runs:
            source, weight = _heads(values, there, n, head_dim), _part(factor, done, n, head_dim)
            around = (here * head_dim, width - (here + n) * head_dim)
            if any(around):
                source, weight = F.pad(source, around), weight if len(weight) == 1 else F.pad(weight, around)
            out = torch.addcmul(out, source, weight)
            done += n
    return out


def _add(
    out: Tensor, earlier: Sequence[Tensor], pairs: Sequence[Pair], factors: Sequence[Tensor | float], head_dim: int
) -> None:
    """Add the weighted channels of each earlier block to those of the same heads in `out`, in place."""
    for values, pair, factor in zip(earlier, pairs, factors, strict=True):
        if pair.whole and isinstance(factor, float):
            out.add_(values, alpha=factor)
            continue
        done = 0
        for here, there, n in pair.runs:
            target, source = _heads(out, here, n, head_dim), _heads(values, there, n, head_dim)
            if isinstance(factor, float):
                target.add_(source, alpha=factor)
            else:
                target.addcmul_(source, _part(factor, done, n, head_dim))
            done += n


def _heads(tensor: Tensor, start: int, n: int, head_dim: int) -> Tensor:
    """The channels of `n` heads; for all heads the tensor itself, since a view costs as much as a sum."""
    wanted = n * head_dim
    return tensor if wanted == tensor.shape[-1] else tensor.narrow(-1, start * head_dim, wanted)


def _part(weight: Tensor, start: int, n: int, head_dim: int) -> Tensor:
    """The weights of `n` heads; a scalar [1] applies to all channels."""
    return weight if len(weight) == 1 else _heads(weight, start, n, head_dim)


class _Mix(torch.autograd.Function):
    """The sum with a backward pass that keeps only the values and works in cache-sized chunks too."""

    @staticmethod
    def forward(
        ctx: Any, own: Tensor, pairs: Sequence[Pair], head_dim: int, weights: Tensor, *earlier: Tensor
    ) -> Tensor:
        ctx.save_for_backward(weights, *earlier)
        ctx.pairs, ctx.head_dim = pairs, head_dim
        return _sum(own, earlier, pairs, weights, head_dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        weights, *earlier = ctx.saved_tensors  # checkpointing lets them be read only once
        pairs, d = ctx.pairs, ctx.head_dim
        each = zip(earlier, pairs, _factors(weights, pairs, d), strict=True)
        grads = [_value_grad(grad, values, pair, factor, d) for values, pair, factor in each]
        mix_grad = torch.zeros_like(
            weights, dtype=torch.promote_types(weights.dtype, torch.float32)
        )  # many small terms
        into = _by_pair(mix_grad, pairs, d)
        for g, *values in _chunks(grad, *earlier):
            _add_weight_grads(g, values, pairs, into, d)
        return grad, None, None, mix_grad.to(weights.dtype), *grads


def _value_grad(grad: Tensor, values: Tensor, pair: Pair, factor: Tensor | float, head_dim: int) -> Tensor:
    """The gradient of an earlier block's values, in a new tensor, so that autograd can add to it in place."""
    if pair.whole:
        return grad * factor
    into, done = torch.zeros_like(values, memory_format=torch.contiguous_format), 0
    for here, there, n in pair.runs:
        weight = factor if isinstance(factor, float) else _part(factor, done, n, head_dim)
        torch.mul(_heads(grad, here, n, head_dim), weight, out=_heads(into, there, n, head_dim))
        done += n
    return into


def _add_weight_grads(
    grad: Tensor, earlier: Sequence[Tensor], pairs: Sequence[Pair], into: Sequence[Tensor], head_dim: int
) -> None:
    """Add the gradients of the weights to `into`, in place."""
    for values, pair, weight_grad in zip(earlier, pairs, into, strict=True):
        done, scalar = 0, len(weight_grad) == 1
        for here, there, n in pair.runs:
            product = _heads(grad, here, n, head_dim) * _heads(values, there, n, head_dim)
            total = product.sum(dtype=weight_grad.dtype) if scalar else product.sum(0, dtype=weight_grad.dtype)
            _part(weight_grad, done, n, head_dim).add_(total)
            done += n


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows (tokens) of all tensors side by side, as many as fit the CPU's cache; all rows on other devices."""
    rows = [t.reshape(-1, t.shape[-1]) for t in tensors]
    step = max(1, CHUNK // max(1, rows[0].shape[1]))
    if tensors[0].device.type != "cpu" or len(rows[0]) <= step:
        return iter([tuple(rows)])
    return zip(*(r.split(step) for r in rows), strict=True)
