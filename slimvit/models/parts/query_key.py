"""Width of queries and keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from slimvit.models.parts.base import Limits, Part, UnitCost
from slimvit.models.parts.heads import HEADS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from slimvit.config.recipe import PruneSection
    from slimvit.models.base import AttentionBlock

GROUP = 8
"""Widths are multiples of this, since matrix products of odd widths are slow."""


class QueryKey(Part):
    """Channels of the queries and keys, equally many in all heads of a block.

    A narrower attention approximates the products of queries and keys of the uncut one at a lower rank. Its channels
    are new directions in falling order of size, so a plan holds only their number.
    """

    name, unit, units = "qk", "query/key channel", "qk_channels"
    label = "query/key channels"
    within = HEADS
    counted = True

    def count(self, view: AttentionBlock) -> int:
        return view.qk_dim if view.attn.num_heads and self.why_not(view) is None else 0

    def module(self, view: AttentionBlock) -> nn.Module:
        return view.attn

    def why_not(self, view: AttentionBlock) -> str | None:
        parts = view.head_parts
        if not view.attn.num_heads or (parts.narrow_qk is not None and parts.whole_qk is None):
            return None
        return parts.whole_qk or f"its family has no {type(view.attn).__name__} with narrower queries and keys"

    def limits(self, section: PruneSection) -> Limits:
        return Limits(GROUP, GROUP)

    def macs(self, view: AttentionBlock) -> UnitCost:
        """Count a row of queries, a row of keys and one term of their products, per head."""
        inputs, window = view.attn.proj.out_features, view.window
        return UnitCost(view.tokens * (2 * inputs + window), beyond=self.count(view))

    def params(self, view: AttentionBlock) -> UnitCost:
        from slimvit.models.query_key import query_key_rows

        rows = query_key_rows(view.attn) if view.attn.num_heads else ()
        return UnitCost(sum(r.weight.shape[-1] + (r.bias is not None) for r in rows), beyond=self.count(view))

    def remove(self, view: AttentionBlock, positions: Sequence[int]) -> None:
        """Keep the largest terms of the products of queries and keys, for white noise as tokens."""
        from slimvit.models import query_key

        width, narrow = view.qk_dim - len(positions), view.head_parts.narrow_qk
        assert narrow is not None
        if view.attn.proj.weight.is_meta:  # shapes alone
            view.block.attn = query_key.with_own_layers(view.attn, narrow)
            query_key.narrow_shapes(view.block.attn, width)
            return
        maps = query_key.low_rank_maps(query_key.moments_of_weights(view), width)
        rows = query_key.query_key_rows(view.attn)
        view.block.attn = query_key.with_own_layers(view.attn, narrow)
        query_key.write_query_key(view.block.attn, rows, maps)

    def recalibrate(
        self, view: AttentionBlock, uncut: AttentionBlock, outer: Sequence[int], inputs: Iterable[Tensor]
    ) -> None:
        """Approximate the products of queries and keys of the uncut block on the tokens [B, N, C] of `inputs`."""
        from slimvit.models.query_key import QueryKeySums, low_rank_maps, query_key_rows, write_query_key

        if not view.attn.num_heads or view.qk_dim == uncut.qk_dim:
            return
        rows, sums = query_key_rows(uncut.attn, outer), QueryKeySums()
        for tokens in inputs:
            sums.add(rows[0].of(tokens), rows[1].of(tokens), len(outer))
        write_query_key(view.attn, rows, low_rank_maps(sums.mean(), view.qk_dim))

    def keys(self) -> tuple[str, str]:
        """Return the keys of a plan file: `"head_dim": 64, "qk_dim": 40`."""
        return "head_dim", "qk_dim"


QK = QueryKey()
