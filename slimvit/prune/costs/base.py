"""What the parts of a model cost, block by block, as a function of how many heads and neurons stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from slimvit.models.base import AttentionBlock
from slimvit.models.mlp import neuron_params, neuron_weights
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import attention_blocks, plan_of

PRICED_PARTS = ("heads", "mlp")

Price: TypeAlias = Callable[[int], float]
"""Heads or neurons that stay in a block -> what the part then costs."""


@dataclass(frozen=True)
class Costs:
    """What a model costs, in one unit (MACs, parameters, milliseconds): the sum of ``rest`` and of every part."""

    unit: str
    rest: float
    """What no cut changes."""
    heads: tuple[Price, ...]
    mlp: tuple[Price, ...]

    def of(self, part: str) -> tuple[Price, ...]:
        return self.mlp if part == "mlp" else self.heads

    def total(self, plan: SlimPlan) -> float:
        prices = zip(plan.blocks, self.heads, self.mlp, strict=True)
        return self.rest + sum(h(len(b.kept_heads)) + m(len(b.kept_neurons)) for b, h, m in prices)


def costs_from(unit: str, total: float, plan: SlimPlan, heads: Sequence[Price], mlp: Sequence[Price]) -> Costs:
    """Prices of parts, and the ``total`` that the model they belong to costs with ``plan``."""
    parts = Costs(unit, 0.0, tuple(heads), tuple(mlp)).total(plan)
    return Costs(unit, total - parts, tuple(heads), tuple(mlp))


def macs_costs(model: nn.Module, total: int) -> Costs:
    """MACs; ``total``: what the whole model costs."""
    blocks = attention_blocks(model)
    heads = [_price(head_macs(b), _norm_macs(b.block.norm1, b.mlp_tokens) + b.head_parts.shared_macs) for b in blocks]
    mlp = [_price(neuron_macs(b), _norm_macs(b.block.norm2, b.mlp_tokens)) for b in blocks]
    return costs_from("MACs", total, plan_of(model), heads, mlp)


def params_costs(model: nn.Module) -> Costs:
    """Parameters."""
    blocks = attention_blocks(model)
    heads = [_params_price(b.block.attn, b.block.norm1, head_params(b), b.attn.num_heads) for b in blocks]
    mlp = [_params_price(b.mlp, b.block.norm2, neuron_params(b.mlp), b.mlp.fc2.in_features) for b in blocks]
    return costs_from("parameters", _params(model), plan_of(model), heads, mlp)


def head_macs(block: AttentionBlock) -> int:
    """MACs of one head: its share of qkv, gate and proj, and its two attention products."""
    inputs = sum(r.weights * (block.tokens if r.positions is None else r.positions) for r in block.head_parts.rows)
    return inputs + block.tokens * block.head_dim * (block.attn.proj.out_features + 2 * block.window)


def neuron_macs(block: AttentionBlock) -> int:
    """MACs of one hidden neuron: its rows of what feeds it, and its column of fc2."""
    return block.mlp_tokens * neuron_weights(block.mlp)


def head_params(block: AttentionBlock) -> int:
    """Parameters of one head: its rows of qkv and gate, its columns of proj, and what else the family names."""
    parts = block.head_parts
    own = sum(rows.params for rows in parts.rows) + sum(part.params(block.attn) for part in parts.slices)
    return own + block.head_dim * block.attn.proj.out_features


def _params_price(branch: nn.Module, norm: nn.Module, unit: int, units: int) -> Price:
    """Everything in a branch and the norm before it but the last bias, which stays when all units are gone."""
    last = next(m for name, m in branch.named_modules() if name in ("proj", "fc2"))
    stays = 0 if last.bias is None else last.bias.numel()
    return _price(unit, _params(branch) + _params(norm) - stays - unit * units)


def _price(unit: int, fixed: int) -> Price:
    return lambda kept: kept * unit + (fixed if kept else 0)


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _norm_macs(norm: nn.Module, tokens: int) -> int:
    """As the counters have it: five a number (mean, variance, scale and shift)."""
    return 5 * tokens * norm.weight.numel() if isinstance(norm, nn.LayerNorm) and norm.bias is not None else 0


NEURON_GROUP = 8
"""Neurons go in groups: matrix products of odd widths are slow."""
