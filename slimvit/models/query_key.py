"""Narrower queries and keys in closed form: the products of queries and keys, approximated at a lower rank.

Attention uses queries q [N, d] and keys k [N, d] of a head only in the products q k^T. G_q = A^T A is the second moment
E[q q^T] over tokens, G_k = B^T B the second moment E[k k^T]. A B^T = U s V^T is a singular value decomposition. The
product of rank r with the smallest squared error is (q R^T)(k T^T)^T, in which R and T [r, d] hold its r largest terms:

    R = sqrt(s_r) U_r^T A^-T    and    T = sqrt(s_r) V_r^T B^-T.

R and T are linear maps of q and k, so the weights absorb them. At full rank R^T T = I: the network is unchanged.
Softmax ignores what is constant over keys, so G_k is the covariance of the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slimvit.models.base import AttentionBlock
from slimvit.models.reduced import as_class

TINY = 1e-10
"""Share of the largest eigenvalue of second moments below which an eigenvalue counts as zero."""


class Moments(NamedTuple):
    """Second moments of the queries and covariance of the keys of one attention, [heads, d, d] each, float64."""

    queries: Tensor
    keys: Tensor


class Maps(NamedTuple):
    """Linear maps [heads, r, d] of the queries and keys of one attention to r channels, largest term first."""

    queries: Tensor
    keys: Tensor
    sizes: Tensor
    """Singular values of all d terms [heads, d], in falling order."""


class QueryKeySums:
    """Running sums of `Moments`."""

    def __init__(self) -> None:
        self.tokens = 0
        self.qq = self.kk = self.k = torch.zeros((), dtype=torch.float64)

    def add(self, q: Tensor, k: Tensor, heads: int) -> None:
        """Add queries and keys [..., heads * d]; all leading dimensions are tokens."""
        q, k = (t.detach().flatten(0, -2).float().unflatten(-1, (heads, -1)).transpose(0, 1) for t in (q, k))
        self.qq = self.qq + (q.mT @ q).cpu().double()
        self.kk = self.kk + (k.mT @ k).cpu().double()
        self.k = self.k + k.sum(1).cpu().double()
        self.tokens += q.shape[1]

    def mean(self) -> Moments:
        """Return the moments over all tokens so far."""
        k = self.k / self.tokens
        return Moments(self.qq / self.tokens, self.kk / self.tokens - k[:, :, None] * k[:, None])


def low_rank_maps(moments: Moments, width: int) -> Maps:
    """Return the maps to `width` channels whose products of queries and keys have the smallest squared error."""
    (a, a_inverse), (b, b_inverse) = _root(moments.queries), _root(moments.keys)
    u, sizes, v = torch.linalg.svd(a @ b.mT)
    root = sizes[:, :width, None].sqrt()
    return Maps(root * (u.mT[:, :width] @ a_inverse.mT), root * (v[:, :width] @ b_inverse.mT), sizes)


def _root(moments: Tensor) -> tuple[Tensor, Tensor]:
    """A [heads, d, d] with A^T A = G, and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(moments)
    floor = TINY * values[:, -1:].clamp_min(torch.finfo(values.dtype).tiny)
    root = torch.where(values > floor, values, 0).sqrt()
    inverse = torch.where(root > 0, 1 / root, 0)
    return root[:, :, None] * vectors.mT, vectors * inverse[:, None]


def moments_of_weights(view: AttentionBlock) -> Moments:
    """Estimate the moments without images, for white noise as the input of the norm."""
    scale, shift = _of_norm(view)
    q, k = query_key_rows(view.attn)
    mean = q.weight @ shift + (0 if q.bias is None else q.bias)
    queries, keys = q.weight * scale, k.weight * scale
    return Moments(queries @ queries.mT + mean[:, :, None] * mean[:, None], keys @ keys.mT)


def _of_norm(view: AttentionBlock) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean [C] of the norm's outputs for white noise as its input."""
    norm: Any = view.block.norm1
    scale, shift = (getattr(norm, name, None) for name in ("weight", "bias"))
    width = _layers(view.attn)[0][0].shape[1]
    if view.post_norm or scale is None:
        scale, shift = torch.ones(width), None
    shift = torch.zeros(width) if shift is None else shift
    return scale.detach().cpu().double(), shift.detach().cpu().double()


class Projection(NamedTuple):
    """Weight [heads, d, C] and bias [heads, d] of the queries or of the keys, float64 on the CPU."""

    weight: Tensor
    bias: Tensor | None

    def of(self, tokens: Tensor) -> Tensor:
        """Project tokens [..., C] to [..., heads * d] in the precision of the tokens."""
        bias = None if self.bias is None else self.bias.flatten().to(tokens)
        return nn.functional.linear(tokens, self.weight.flatten(0, 1).to(tokens), bias)


def query_key_rows(attn: Any, heads: Sequence[int] | None = None) -> tuple[Projection, Projection]:
    """Return the rows of queries and keys of the heads at the given positions; None for all heads."""
    chosen = slice(None) if heads is None else list(heads)

    def by_head(rows: Tensor) -> Tensor:
        return rows.detach().cpu().double().unflatten(0, (attn.num_heads, -1))[chosen]

    q, k = (Projection(by_head(weight), None if bias is None else by_head(bias)) for weight, bias in _layers(attn)[:2])
    return q, k


def write_query_key(attn: Any, rows: tuple[Projection, Projection], maps: Maps) -> None:
    """Write `rows`, mapped by `maps`, into an attention with a layer each for queries and keys, in place."""
    for layer, old, by_head in zip((attn.q_proj, attn.k_proj), rows, maps[:2], strict=True):
        new = {"weight": by_head @ old.weight}
        if old.bias is not None:
            new["bias"] = (by_head @ old.bias[:, :, None]).squeeze(-1)
        for name, values in new.items():
            was = getattr(layer, name)
            setattr(layer, name, nn.Parameter(values.flatten(0, 1).to(was), requires_grad=was.requires_grad))
        layer.out_features = len(layer.weight)
    attn.qk_dim = maps.queries.shape[1]


def narrow_shapes(attn: Any, width: int) -> None:
    """Give the queries and keys of an attention without values `width` channels a head, in place."""
    for layer in (attn.q_proj, attn.k_proj):
        for name, rows in list(layer.named_parameters()):
            setattr(layer, name, nn.Parameter(rows.detach()[: attn.num_heads * width]))
        layer.out_features = attn.num_heads * width
    attn.qk_dim = width


def with_own_layers(attn: Any, narrow: type[Any]) -> Any:
    """Return the attention as its family's `narrow` class, with one layer each for queries, keys and values.

    It computes the same function. The two share their state, so `attn` must not be used afterwards.
    """
    if "qk_dim" in attn.__dict__:
        return attn
    layers = [_linear(attn, weight, bias) for weight, bias in _layers(attn)]
    own = as_class(attn, type(attn) if isinstance(attn, narrow) else narrow)
    for name in ("q_bias", "k_bias", "v_bias"):
        own._buffers.pop(name, None)
        own._parameters.pop(name, None)
    own.qkv = own.q_bias = None
    own.q_proj, own.k_proj, own.v_proj = layers
    own.qk_dim = layers[0].out_features // own.num_heads
    return own


def _layers(attn: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Weight [k, C] and bias [k] of queries, keys and values."""
    if attn.qkv is None:
        return [(layer.weight, layer.bias) for layer in (attn.q_proj, attn.k_proj, attn.v_proj)]
    biases: Any = (None,) * 3 if attn.qkv.bias is None else attn.qkv.bias.chunk(3)
    if getattr(attn, "q_bias", None) is not None:
        biases = (attn.q_bias, attn.k_bias if isinstance(attn.k_bias, nn.Parameter) else None, attn.v_bias)
    return list(zip(attn.qkv.weight.chunk(3), biases, strict=True))


def _linear(attn: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    trained = any(p.requires_grad for p in attn.parameters())
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=trained)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=trained)
    return layer
