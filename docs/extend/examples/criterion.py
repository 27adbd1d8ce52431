"""A criterion: abs(weight) times norm of the activation (Wanda, Sun et al., ICLR 2024), summed per unit.

`slimvit prune MODEL --criterion wanda ...`, or `criterion: wanda` in a recipe.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slimvit.data.loaders import Batches
from slimvit.models.modes import device_of, evaluating
from slimvit.models.parts.registry import PARTS
from slimvit.models.registry import attention_blocks
from slimvit.prune.criteria.base import ScoresByPart, criterion


@criterion("wanda")
def wanda(model: nn.Module, batches: Batches, parts: tuple[str, ...]) -> ScoresByPart:
    """Score each unit by the sum of abs(weight) x norm(input) in the layer that ends its branch.

    Args:
        model: Any supported timm model.
        batches: Images [B, C, H, W] with labels [B]; the labels are not used.
        parts: The parts to score, such as `("heads", "mlp")`.

    Returns:
        Tensors [units] by part, block by block.
    """
    blocks = attention_blocks(model)
    layers = {name: [PARTS[name].out(view) for view in blocks] for name in parts}
    squares = _input_squares(
        [layer for found in layers.values() for layer in found if layer is not None], model, batches
    )
    return {
        name: [
            (layer.weight.abs() * squares[layer].sqrt()).sum(0).view(-1, PARTS[name].width(view)).sum(1)
            for layer, view in zip(layers[name], blocks, strict=True)
            if layer is not None
        ]
        for name in parts
    }


def _input_squares(layers: list[nn.Linear], model: nn.Module, batches: Batches) -> dict[nn.Linear, Tensor]:
    """Sum of the squared inputs [k] over all tokens of all images, by layer."""
    squares = {layer: torch.zeros_like(layer.weight[0]) for layer in layers}

    def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        squares[layer] += inputs[0].flatten(0, -2).square().sum(0)  # type: ignore[index]

    hooks = [layer.register_forward_pre_hook(add) for layer in layers]
    try:
        with evaluating(model), torch.inference_mode():
            for images, _ in batches:
                model(images.to(device_of(model)))
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: found.clone() for layer, found in squares.items()}
