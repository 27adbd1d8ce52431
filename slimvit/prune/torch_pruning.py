"""The one importer of torch_pruning: cutting linear layers, and its group importances as criteria."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from timm.layers import Attention
from torch import Tensor, nn

from slimvit.models.base import AttentionBlock, TimmModule
from slimvit.models.mlp import input_layers


def drop_outputs(linear: nn.Linear, channels: list[int]) -> None:
    """Remove output channels (rows of the weight) in place."""
    with _flags_kept(linear):
        tp.prune_linear_out_channels(linear, channels)


def drop_inputs(linear: nn.Linear, channels: list[int]) -> None:
    """Remove input channels (columns of the weight) in place."""
    with _flags_kept(linear):
        tp.prune_linear_in_channels(linear, channels)


@contextmanager
def _flags_kept(linear: nn.Linear) -> Iterator[None]:
    """Torch-Pruning makes new parameters, which are never frozen."""
    trained = {name: p.requires_grad for name, p in linear.named_parameters()}
    yield
    for name, p in linear.named_parameters():
        p.requires_grad_(trained[name])


def group_importance(block: AttentionBlock, kind: str) -> Tensor:
    """Torch-Pruning's importance of each head of one attention module, [num_heads].

    The group is what its dependency graph couples to the channels of ``qkv``. A head's importance is the mean over
    its q, k and v channels. ``kind`` is ``magnitude`` (squared L2) or ``taylor`` (abs(weight x gradient); the
    gradients of a loss must be on the weights).

    Torch-Pruning's own pruner averages a fused ``qkv`` in contiguous thirds instead, which mixes heads up; slicing
    by head is what its documentation describes, and the fair way to run it.

    ``block`` must be of a throw-away copy: the tracing changes it.
    """
    attn = _traceable(block).requires_grad_(True)  # the graph is read off autograd's
    found = _importance(kind, attn, attn.qkv, (attn.qkv, tp.prune_linear_out_channels, attn.qkv.out_features))
    return found.view(3, attn.num_heads, block.head_dim).mean(dim=(0, 2))


def neuron_importance(mlp: TimmModule, kind: str) -> Tensor:
    """Torch-Pruning's importance of each hidden neuron of one MLP, [neurons]; see :func:`group_importance`.

    The group is read off ``fc2``, whose inputs are the neurons; a GLU's neuron has two rows before it.
    """
    mlp = mlp.requires_grad_(True)
    neurons = mlp.fc2.in_features
    found = _importance(kind, mlp, input_layers(mlp)[0][0], (mlp.fc2, tp.prune_linear_in_channels, neurons))
    return found.view(-1, neurons).mean(0)


def _importance(kind: str, module: nn.Module, first: nn.Linear, cut: tuple[nn.Linear, Any, int]) -> Tensor:
    """Of all channels that go together with those of a layer, when ``cut`` says: the layer, how it is pruned, and how
    many channels that way. ``first`` is what the module's input enters."""
    importance = {
        "magnitude": tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": tp.importance.GroupTaylorImportance(),
    }[kind]
    example = torch.zeros(1, 2, first.in_features, device=first.weight.device, dtype=first.weight.dtype)
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(module, example_inputs=example)
    layer, prune, channels = cut
    return importance(graph.get_pruning_group(layer, prune, idxs=list(range(channels))))


def _fused(attn: TimmModule) -> nn.Linear:
    """Queries, keys and values as one layer, gradients included."""
    if attn.qkv is not None:
        return attn.qkv
    layers = [attn.q_proj, attn.k_proj, attn.v_proj]
    fused = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), bias=False)
    fused.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]))
    if all(layer.weight.grad is not None for layer in layers):
        fused.weight.grad = torch.cat([layer.weight.grad for layer in layers])
    return fused


def _traceable(block: AttentionBlock) -> Attention:
    """A plain attention around the block's own layers: the graph understands neither norms that all heads share nor
    tables of biases, and none of them is part of a group."""
    old = block.attn
    plain = Attention(old.num_heads * block.head_dim, num_heads=old.num_heads)
    plain.qkv, plain.proj = _fused(old), old.proj
    if getattr(old, "gate", None) is not None:
        plain.gate = old.gate
    return plain
