"""Token merging on plain tensors: bipartite soft matching (Bolya et al., Token Merging, ICLR 2023).

Every other token behind the prefix (set A) is compared with the rest (set B) by the cosine similarity of their keys.
The r tokens of A with the most similar partners in B are merged into them. A token that stands for several is their
mean, weighted by size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from slimvit.utils.errors import ModelError


class Merge(NamedTuple):
    """The tokens of every image that stay, and those that are merged into them, by position."""

    kept: Tensor
    """Positions of the n - r tokens that stay [B, n - r], in rising order."""
    merged: Tensor
    """Positions of the merged tokens [B, r], the most similar first."""
    into: Tensor
    """Positions among the kept tokens of those that they are merged into [B, r]."""


class Tokens(NamedTuple):
    """The n present tokens of every image, and the N original ones that they stand for."""

    sizes: Tensor
    """Number of original tokens in each present one [B, n]."""
    sources: Tensor
    """Position of the present token that holds each original one [B, N]."""
    places: Tensor
    """An original token of each present one [B, n]."""

    @classmethod
    def unmerged(cls, x: Tensor) -> Tokens:
        """Return the tokens of a stream [B, N, C] in which every token stands for itself."""
        ids = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        return cls(torch.ones_like(x[..., 0]), ids, ids)

    def after(self, merge: Merge) -> Tokens:
        """Return the tokens after a merge."""
        count = merge.kept.shape[1]
        new = torch.zeros_like(self.sizes, dtype=torch.long)
        new = new.scatter(1, merge.kept, torch.arange(count, device=new.device).expand_as(merge.kept))
        new = new.scatter(1, merge.merged, merge.into)
        sizes = self.sizes.gather(1, merge.kept).scatter_add(1, merge.into, self.sizes.gather(1, merge.merged))
        return Tokens(sizes, new.gather(1, self.sources), self.places.gather(1, merge.kept))


def most_merged(most: int, before: int) -> int:
    """Return the number of tokens that a block can merge.

    Args:
        most: The number in an unmerged network, half of the tokens behind the prefix.
        before: Tokens that earlier blocks merge.
    """
    return max(0, (2 * most - before) // 2)


def within_bounds(most: int, merges: Sequence[int]) -> list[int]:
    """Return the numbers of tokens merged by each block, lowered to what it can merge; `most` as in `most_merged`."""
    allowed: list[int] = []
    for r in merges:
        allowed.append(min(r, most_merged(most, sum(allowed))))
    return allowed


def match(keys: Tensor, prefix: int, r: int) -> Merge:
    """Choose the r most similar tokens of every image.

    Args:
        keys: What tokens are compared by [B, n, d].
        prefix: Number of tokens at the front that never take part, such as the class token.
        r: Number of tokens to merge, at most half of those behind the prefix.

    Raises:
        ModelError: The image has too few tokens.
    """
    batch, n, _ = keys.shape
    if r > (n - prefix) // 2:
        raise ModelError(
            f"token merging: a block merges {r} tokens, but gets {n - prefix} of the image, of which it can merge "
            f"{(n - prefix) // 2}; give larger images, or a plan that merges fewer"
        )
    unit = F.normalize(keys[:, prefix:].detach(), dim=-1)
    similarity, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)
    order = similarity.argsort(dim=-1, descending=True)
    merged, partner = prefix + 2 * order[:, :r], prefix + 1 + 2 * partner.gather(1, order[:, :r])
    every = torch.arange(n, device=keys.device)
    fixed = torch.cat((every[:prefix], every[prefix + 1 :: 2])).expand(batch, -1)
    kept = torch.cat((fixed, prefix + 2 * order[:, r:]), 1).sort(1).values
    new = torch.zeros_like(every).expand(batch, -1).scatter(1, kept, every[: n - r].expand(batch, -1))
    return Merge(kept, merged, new.gather(1, partner))


def merge(x: Tensor, sizes: Tensor, by: Merge) -> Tensor:
    """Merge tokens: each kept one becomes the mean, weighted by size, of itself and those merged into it.

    Args:
        x: Features of the tokens [B, n, C].
        sizes: Number of original tokens in each [B, n].
        by: The tokens to merge.

    Returns:
        Features of the kept tokens [B, n - r, C]. Tokens that nothing is merged into do not change.
    """
    kept, into = take(x, by.kept), by.into
    parts = sizes.gather(1, by.merged)
    whole = sizes.gather(1, by.kept).scatter_add(1, into, parts)
    share = (parts / whole.gather(1, into)).to(x.dtype).unsqueeze(-1)
    change = share * (take(x, by.merged) - take(kept, into))
    return kept.flatten(0, 1).index_add(0, _rows(into, kept), change.flatten(0, 1)).view_as(kept)


def unmerge(x: Tensor, sources: Tensor) -> Tensor:
    """Copy every token to the places of the original ones that it stands for: [B, n, C] -> [B, N, C].

    Args:
        x: Features of the present tokens [B, n, C].
        sources: Position of the present token that holds each original one [B, N].
    """
    return take(x, sources)


def group_means(x: Tensor, tokens: Tokens) -> Tensor:
    """Average the original tokens [B, N, C] that each present one stands for: [B, n, C]."""
    zeros = x.new_zeros(*tokens.sizes.shape, x.shape[-1])
    sums = zeros.flatten(0, 1).index_add(0, _rows(tokens.sources, zeros), x.flatten(0, 1))
    return sums.view_as(zeros) / tokens.sizes.unsqueeze(-1)


def take(x: Tensor, positions: Tensor) -> Tensor:
    """Return the tokens at `positions` [B, m] of x [B, n, C]: [B, m, C]."""
    rows = x.flatten(0, 1).index_select(0, _rows(positions, x))  # several times as fast as gather
    return rows.view(*positions.shape, x.shape[-1])


def _rows(positions: Tensor, x: Tensor) -> Tensor:
    """Rows [B * m] of the flattened x [B * n, C] at the positions [B, m] of each image."""
    first = x.shape[1] * torch.arange(x.shape[0], device=x.device)
    return (positions + first.unsqueeze(1)).flatten()
