"""Attention heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from slimvit.models.parts.base import Coupled, Limits, Part, UnitCost, spread_widths

if TYPE_CHECKING:
    from torch import Tensor, nn

    from slimvit.config.recipe import PruneSection
    from slimvit.models.base import AttentionBlock

POINTS = 12
"""Largest number of widths at which an attention is timed."""


class Heads(Part):
    """Heads of the attention, which ends in `proj`. The family names the other parameters of a head."""

    name, unit, units = "heads", "head", "heads"
    branch = "attention"
    everywhere = in_timm = ratio_per_mac = True
    plan_format = 1
    as_ranges = False
    ratio_key, keep_key, limit_key = "ratio", "heads", "min_heads"

    def count(self, view: AttentionBlock) -> int:
        return view.attn.num_heads

    def module(self, view: AttentionBlock) -> nn.Module:
        return view.attn

    def limits(self, section: PruneSection) -> Limits:
        return Limits(section.min_heads)

    def macs(self, view: AttentionBlock) -> UnitCost:
        """Count qkv, gate, proj and both attention products per head; the norm is removed with the last head."""
        from slimvit.models.cutting import norm_macs

        rows = sum(r.weights * (view.tokens if r.positions is None else r.positions) for r in view.head_parts.rows)
        products = view.window * (view.qk_dim + view.head_dim)
        unit = rows + view.tokens * (view.head_dim * view.attn.proj.out_features + products)
        return UnitCost(unit, norm_macs(view.block.norm1, view.mlp_tokens + view.merged) + view.head_parts.shared_macs)

    def params(self, view: AttentionBlock) -> UnitCost:
        """Count the rows of qkv and gate, the columns of proj, and the family's other parameters per head."""
        from slimvit.models.cutting import params_beside

        own = sum(r.params for r in view.head_parts.rows) + sum(s.params(view.attn) for s in view.head_parts.slices)
        unit = own + view.head_dim * view.attn.proj.out_features
        fixed = params_beside(view.attn, view.attn.proj, view.block.norm1)
        return UnitCost(unit, fixed - unit * view.attn.num_heads)

    def remove(self, view: AttentionBlock, positions: Sequence[int]) -> None:
        from slimvit.models.cutting import drop_entries, drop_inputs, drop_outputs
        from slimvit.models.reduced import as_head_pruned

        attn, d, parts = view.attn, view.head_dim, view.head_parts
        left = attn.num_heads - len(positions)
        if parts.narrow is not None:
            attn = view.block.attn = as_head_pruned(attn, parts.narrow)
            drop_entries(attn, "head_ids", 0, positions)
        for rows in parts.rows:
            drop_outputs(rows.layer, rows.of(positions))
        for part in parts.slices:
            drop_entries(attn, part.name, part.dim, [h * part.width + i for h in positions for i in range(part.width)])
        drop_inputs(attn.proj, [h * d + i for h in positions for i in range(d)])
        for name, size in parts.counts.items():
            setattr(attn, name, left * size)

    def remove_branch(self, view: AttentionBlock) -> None:
        """Replace the attention by a constant and remove norm1, which it no longer needs."""
        from slimvit.models.cutting import without_norm
        from slimvit.models.empty import EmptyAttention

        block = view.block
        block.attn = EmptyAttention(view.head_dim, block.attn.proj).train(block.training)
        block.norm1 = without_norm(block.norm1, block.attn.proj, view.post_norm)

    def out(self, view: AttentionBlock) -> nn.Linear:
        return view.attn.proj

    def width(self, view: AttentionBlock) -> int:
        return view.head_dim

    def to_stream(self, view: AttentionBlock) -> Callable[[Tensor, tuple[int, ...]], Tensor]:
        """Undo windows and padding: features [..., k] to the layout of the stream [B, ..., k]."""
        return view.to_stream

    def squares(self, view: AttentionBlock) -> Tensor:
        """Sum the squares of the weights of each head, [heads]; biases of layers are left out."""
        import torch

        attn, heads = view.attn, view.attn.num_heads
        if heads == 0:
            return torch.zeros(0)
        squares: Tensor = attn.proj.weight.detach().square().sum(0).view(heads, -1).sum(1)
        for rows in view.head_parts.rows:
            by_head = rows.layer.weight.detach().square().sum(1).view(rows.copies, heads, rows.width)
            squares = squares + by_head.sum((0, 2))
        for part in view.head_parts.slices:
            if not part.name.endswith("_bias"):
                entries = getattr(attn, part.name).detach().square().movedim(part.dim, 0)
                squares = squares + entries.reshape(heads, -1).sum(1)
        return squares

    def coupled(self, view: AttentionBlock) -> Coupled:
        """Start at the channels of `qkv`. The importance of a head is the mean over its q, k and v channels.

        Torch-Pruning's own pruner averages contiguous thirds of a fused `qkv`, which confuses the heads.
        """
        from slimvit.models.head_parts import traceable

        attn = traceable(view.attn, view.head_dim).requires_grad_(True)  # the dependency graph is built from autograd's
        shape = (3, attn.num_heads, view.head_dim)
        return Coupled(attn, attn.qkv.in_features, attn.qkv, True, lambda scores: scores.view(shape).mean(dim=(0, 2)))

    def kind(self, view: AttentionBlock) -> str:
        """Describe the attention without its dense mixes, whose time does not count as that of heads."""
        from slimvit.models.base import layer_types

        block, attn = view.block, view.attn
        layout = [getattr(block, name, None) for name in ("input_resolution", "window_size", "shift_size")]
        inputs = next((rows.layer for rows in view.head_parts.rows), attn.proj)
        return (
            f"attention: {layer_types(block.norm1, attn, getattr(block, 'ls1', None))}, "
            f"bias {inputs.bias is not None}, {attn.proj.out_features} wide, heads of {view.head_dim}, "
            f"{view.tokens} tokens of {view.window}, windows {layout}, fused {getattr(attn, 'fused_attn', None)}"
        )

    def widths(self, view: AttentionBlock) -> list[int]:
        return spread_widths(view.attn.num_heads, 1, POINTS)


HEADS = Heads()
