"""The branches of a model that differ in what they cost, each as real blocks cut to a ladder of widths.

A branch is timed inside its own block, whose other branch is gone; what the block costs when both are gone is then
taken off.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from slimvit.measure.latency.curves import spread_widths
from slimvit.models.base import AttentionBlock, TimmModule, plain_type
from slimvit.models.mlp import hidden_neurons
from slimvit.prune.costs.base import NEURON_GROUP, PRICED_PARTS
from slimvit.prune.surgery import pruned_block

HEAD_POINTS = 12
"""Every number of heads is timed where there are no more, otherwise as many of them."""
MLP_POINTS = 8


@dataclass(frozen=True)
class WidthSweep:
    """One kind of branch."""

    kind: str
    part: str
    """`heads` or `mlp`."""
    view: AttentionBlock
    """The widest block of the kind."""
    widths: tuple[int, ...]
    """From 0, where the branch is gone, to all of it."""

    def block(self, width: int) -> TimmModule:
        """The block with so many heads or neurons, and without its other branch."""
        heads, neurons = (width, 0) if self.part == "heads" else (0, width)
        return pruned_block(self.view, heads, neurons)


def width_sweeps(views: Iterable[AttentionBlock]) -> list[WidthSweep]:
    """A ladder for every kind of branch among the blocks, of which none may have dense attention."""
    widest: dict[tuple[str, str], AttentionBlock] = {}
    for view in views:
        for part in PRICED_PARTS:
            before = widest.get(key := (branch_kind(view, part), part))
            if branch_width(view, part) > (0 if before is None else branch_width(before, part)):
                widest[key] = view
    return [WidthSweep(kind, part, view, _widths(view, part)) for (kind, part), view in widest.items()]


def branch_width(view: AttentionBlock, part: str) -> int:
    """Heads or neurons; 0 too for neurons that cannot go."""
    return view.attn.num_heads if part == "heads" else hidden_neurons(view.mlp)


def branch_kind(view: AttentionBlock, part: str) -> str:
    """All that the time of a block's attention or MLP depends on besides its width, in words. A dense attention is
    taken for a plain one: what its mixing costs is not priced by the head."""
    block, attn, mlp = view.block, view.attn, view.mlp
    if part == "mlp":
        layers = (block.norm2, mlp, getattr(block, "ls2", None))
        return f"mlp: {_types(*layers)}, bias {_biased(mlp.fc2)}, {mlp.fc2.out_features} wide, {view.mlp_tokens} tokens"
    layers = (block.norm1, attn, getattr(block, "ls1", None))
    layout = [getattr(block, name, None) for name in ("input_resolution", "window_size", "shift_size")]
    inputs = next((rows.layer for rows in view.head_parts.rows), attn.proj)
    return (
        f"attention: {_types(*layers)}, bias {_biased(inputs)}, {attn.proj.out_features} "
        f"wide, heads of {view.head_dim}, {view.tokens} tokens of {view.window}, windows {layout}, "
        f"fused {getattr(attn, 'fused_attn', None)}"
    )


def _types(*modules: nn.Module | None) -> str:
    return " ".join(plain_type(m).__name__ for module in modules if module is not None for m in module.modules())


def _biased(layer: nn.Linear) -> bool:
    return layer.bias is not None


def _widths(view: AttentionBlock, part: str) -> tuple[int, ...]:
    most = branch_width(view, part)
    unit, points = (1, HEAD_POINTS) if part == "heads" else (NEURON_GROUP, MLP_POINTS)
    return (0, *spread_widths(most, unit, points))
