"""Hidden neurons of the MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from slimvit.models.parts.base import Coupled, Limits, Part, UnitCost, spread_widths

if TYPE_CHECKING:
    from torch import Tensor, nn

    from slimvit.config.recipe import PruneSection
    from slimvit.models.base import AttentionBlock

GROUP = 8
"""Widths are timed in multiples of this, since matrix products of odd widths are slow."""
POINTS = 8
"""Number of widths at which an MLP is timed."""


class Mlp(Part):
    """Hidden neurons of the MLP, which ends in `fc2`."""

    name, unit, units = "mlp", "neuron", "neurons"
    label = "MLP neurons"
    branch = "MLP"
    fallback = in_timm = True
    plan_format = 2
    ratio_key, limit_key = "mlp_ratio", "neuron_group"

    def count(self, view: AttentionBlock) -> int:
        return view.mlp.fc2.in_features if self.why_not(view) is None else 0

    def module(self, view: AttentionBlock) -> nn.Module:
        return view.mlp

    def why_not(self, view: AttentionBlock) -> str | None:
        from slimvit.models.mlp import why_neurons_stay

        return why_neurons_stay(view.mlp)

    def limits(self, section: PruneSection) -> Limits:
        return Limits(section.neuron_group, section.neuron_group)

    def macs(self, view: AttentionBlock) -> UnitCost:
        """Count the input rows and the column of fc2 per neuron; the norm is removed with the last neuron."""
        from slimvit.models.cutting import norm_macs
        from slimvit.models.mlp import neuron_weights

        return UnitCost(view.mlp_tokens * neuron_weights(view.mlp), norm_macs(view.block.norm2, view.mlp_tokens))

    def params(self, view: AttentionBlock) -> UnitCost:
        from slimvit.models.cutting import params_beside
        from slimvit.models.mlp import neuron_params

        unit, fc2 = neuron_params(view.mlp), view.mlp.fc2
        return UnitCost(unit, params_beside(view.mlp, fc2, view.block.norm2) - unit * fc2.in_features)

    def remove(self, view: AttentionBlock, positions: Sequence[int]) -> None:
        from slimvit.models.cutting import drop_inputs, drop_outputs
        from slimvit.models.mlp import input_layers

        fc2 = view.mlp.fc2
        width = fc2.in_features
        for layer, copies in input_layers(view.mlp):
            drop_outputs(layer, [part * width + i for part in range(copies) for i in positions])
        drop_inputs(fc2, list(positions))

    def remove_branch(self, view: AttentionBlock) -> None:
        """Replace the MLP by a constant and remove norm2, which it no longer needs."""
        from slimvit.models.cutting import without_norm
        from slimvit.models.empty import EmptyMlp

        block = view.block
        block.mlp = EmptyMlp(block.mlp.fc2).train(block.training)
        block.norm2 = without_norm(block.norm2, block.mlp.fc2, view.post_norm)

    def out(self, view: AttentionBlock) -> nn.Linear:
        return view.mlp.fc2

    def squares(self, view: AttentionBlock) -> Tensor:
        """Sum the squares of the weights of each neuron, [neurons]; biases are left out."""
        from slimvit.models.mlp import input_layers

        squares: Tensor = view.mlp.fc2.weight.detach().square().sum(0)
        for layer, copies in input_layers(view.mlp):
            squares = squares + layer.weight.detach().square().sum(1).view(copies, -1).sum(0)
        return squares

    def coupled(self, view: AttentionBlock) -> Coupled:
        """Start at the inputs of `fc2`, which are the neurons; a neuron of a GLU has two rows before it."""
        from slimvit.models.mlp import input_layers

        mlp = view.mlp.requires_grad_(True)
        neurons, first = mlp.fc2.in_features, input_layers(mlp)[0][0]
        return Coupled(mlp, first.in_features, mlp.fc2, False, lambda scores: scores.view(-1, neurons).mean(0))

    def kind(self, view: AttentionBlock) -> str:
        from slimvit.models.base import layer_types

        block, fc2 = view.block, view.mlp.fc2
        return (
            f"mlp: {layer_types(block.norm2, view.mlp, getattr(block, 'ls2', None))}, bias {fc2.bias is not None}, "
            f"{fc2.out_features} wide, {view.mlp_tokens} tokens"
        )

    def widths(self, view: AttentionBlock) -> list[int]:
        return spread_widths(self.count(view), GROUP, POINTS)


MLP = Mlp()
