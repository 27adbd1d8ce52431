"""MACs by module and operator, from fvcore's trace of one image.

fvcore does not know `scaled_dot_product_attention` and leaves it out. A handle for it is registered here, since it is
exactly what head pruning saves.
"""

from __future__ import annotations

import warnings
from collections import Counter
from math import prod
from typing import Any

import torch
from torch import nn

from slimvit.measure.flops.parts import BLOCK_PARTS, flop_part_of, in_order
from slimvit.models.base import ImageSize

NORMS = frozenset({"layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm"})
"""Counted by fvcore (some operations per element), left out by every other counter."""

_ARITHMETIC = "abs add add_ addcmul addcmul_ ceil clamp_min cos div div_ exp log mul mul_ neg pow reciprocal rsqrt "
_ARITHMETIC += "rsub sin sqrt sub sub_"
_ACTIVATIONS = "elu gelu hardsigmoid hardswish hardtanh hardtanh_ leaky_relu log_softmax mish relu6 sigmoid silu "
_ACTIVATIONS += "silu_ softmax softplus tanh"
_REDUCTIONS = "all amax amin any cumsum linalg_vector_norm max_pool2d mean min norm prod std sum var"
_SHAPES = "alias argsort bernoulli clone dropout_ empty_like expand_as feature_dropout fill_ flip index_add "
_SHAPES += "index_select lift_fresh "
_SHAPES += "linspace logical_not lt masked_fill_ meshgrid movedim ne numel ones_like pad repeat repeat_interleave "
_SHAPES += "reshape_as rot90 scatter scatter_add select_scatter sort tile unflatten unfold view_as where zero_"

ELEMENTWISE = frozenset(f"aten::{name}" for name in f"{_ARITHMETIC} {_ACTIVATIONS} {_REDUCTIONS} {_SHAPES}".split())
"""Operators without multiply-adds of their own: elementwise work, reductions, and moving data."""


def trace(model: nn.Module, size: ImageSize) -> tuple[dict[str, Counter[str]], list[str]]:
    """Trace one image [C, H, W] through a model on the CPU.

    Returns:
        The MACs of each module itself, without its children, by part; and the operators that were skipped although
        they may multiply.
    """
    analysis = _analysis(model, size)
    skipped = sorted(set(analysis.unsupported_ops()) - ELEMENTWISE)
    return _own_counts(analysis.by_module_and_operator()), [name.removeprefix("aten::") for name in skipped]


def counts_by_block(own: dict[str, Counter[str]]) -> tuple[dict[str, int], ...]:
    """Add up the modules inside each `[layers.i.]blocks.j`, in forward order."""
    blocks: dict[str, Counter[str]] = {}
    for name, counts in own.items():
        before, blocks_dot, after = name.partition("blocks.")
        if blocks_dot and before in ("", f"{before.rpartition('.')[0]}."):
            blocks.setdefault(before + blocks_dot + after.split(".")[0], Counter()).update(counts)
    return tuple(in_order(counts, BLOCK_PARTS) for counts in blocks.values())


def _analysis(model: nn.Module, size: ImageSize) -> Any:
    """fvcore's analysis, with attention counted and its log messages off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fvcore calls torch.jit.script while it is imported
        from fvcore.nn import FlopCountAnalysis
        from fvcore.nn.jit_handles import norm_flop_counter

    analysis = FlopCountAnalysis(model, torch.zeros(1, *size, device="cpu"))
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
    analysis.set_op_handle("aten::rms_norm", norm_flop_counter(2))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with torch.no_grad():
        analysis.total()
    return analysis


def _attention_macs(inputs: list[Any], _: list[Any]) -> int:
    """q [..., Nq, d], k [..., Nk, d], v [..., Nk, e] -> MACs of both products, Nq * Nk * (d + e) per head and image."""
    q, k, v = (value.type().sizes() for value in inputs[:3])
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _own_counts(counts: dict[str, Counter[str]]) -> dict[str, Counter[str]]:
    """MACs by part of each module itself: fvcore's count of the module less that of its children."""
    by_operator = {name: Counter(operators) for name, operators in counts.items()}
    for name, operators in counts.items():
        if name:
            by_operator[name.rpartition(".")[0]].subtract(operators)
    own: dict[str, Counter[str]] = {}
    for name, operators in by_operator.items():
        own[name] = Counter()
        for operator, macs in operators.items():
            own[name][_part(name, operator)] += int(macs)
    return own


def _part(name: str, operator: str) -> str:
    """The part of an operator.

    A linear product of an attention itself belongs to qkv, whose weights it uses. Products of a block itself compare
    the keys of tokens to merge.
    """
    if operator in NORMS:
        return "norm"
    if name.rpartition(".")[0].endswith("blocks"):
        return "attention"
    return "qkv" if operator == "linear" and name.endswith(".attn") else flop_part_of(name)
