"""The MLPs whose hidden neurons can be removed: timm's Mlp, GluMlp and SwiGLU, which end in the linear `fc2`."""

from __future__ import annotations

from typing import Any

from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from torch import nn

from slimvit.models.empty import EmptyMlp

INPUTS: dict[type, tuple[tuple[str, int], ...]] = {
    Mlp: (("fc1", 1),),
    GluMlp: (("fc1", 2),),
    SwiGLU: (("fc1_g", 1), ("fc1_x", 1)),
    EmptyMlp: (),
}
"""The layers before the hidden neurons, and the number of outputs per neuron."""


def why_neurons_stay(mlp: Any) -> str | None:
    """Return why no hidden neuron can be removed; None where they can."""
    if type(mlp) not in INPUTS or not isinstance(mlp.fc2, nn.Linear):
        return f"it is a {type(mlp).__name__}"
    if not isinstance(getattr(mlp, "norm", None), nn.Identity | None):
        return "it normalises across them (scale_mlp)"
    return None


def input_layers(mlp: Any) -> list[tuple[nn.Linear, int]]:
    """Return the layers before the hidden neurons, with their number of outputs per neuron (two in a GLU)."""
    return [(getattr(mlp, name), copies) for name, copies in INPUTS[type(mlp)]]


def neuron_weights(mlp: Any) -> int:
    """Return the number of weights of one hidden neuron: its rows of the input layers and its column of fc2."""
    return sum(copies * layer.in_features for layer, copies in input_layers(mlp)) + mlp.fc2.out_features


def neuron_params(mlp: Any) -> int:
    """Return the number of parameters of one hidden neuron."""
    return neuron_weights(mlp) + sum(copies for layer, copies in input_layers(mlp) if layer.bias is not None)
