"""The part of a transformer that a module belongs to, by the module's name; parameters by part."""

from __future__ import annotations

from torch import nn

FLOP_PARTS = ("patch_embed", "qkv", "attention", "proj", "mlp", "norm", "head", "other")
"""The parts that every count lists. Further ones (`mixes`, `reduction`) are listed where they occur."""

BLOCK_PARTS = ("qkv", "attention", "proj", "mlp", "norm")
"""The parts that every transformer block lists."""

PART_OF_MODULE = (
    ("attn_pool", "head"),
    ("patch_embed", "patch_embed"),
    ("head", "head"),
    ("head_dist", "head"),
    ("downsample.reduction", "reduction"),
    ("attn.qkv", "qkv"),
    ("attn.q_proj", "qkv"),
    ("attn.k_proj", "qkv"),
    ("attn.v_proj", "qkv"),
    ("attn.q_bias", "qkv"),
    ("attn.v_bias", "qkv"),
    ("attn.gate", "qkv"),
    ("attn.proj", "proj"),
    ("attn.mix", "mixes"),
    ("attn", "attention"),
    ("mlp", "mlp"),
)
"""Consecutive components of a module's name, and its part. The first match wins."""


def flop_part_of(name: str) -> str:
    """Return the part of a module or parameter by name, norms aside: `blocks.3.attn.qkv.weight` -> `qkv`."""
    dotted = f".{name}."
    return next((part for component, part in PART_OF_MODULE if f".{component}." in dotted), "other")


def in_order(counts: dict[str, int], always: tuple[str, ...]) -> dict[str, int]:
    """Order `counts`: the parts of `always` first, even at 0, then the other parts that are not 0."""
    extra = {part: n for part, n in counts.items() if part not in always and n}
    return {part: counts.get(part, 0) for part in always} | extra


def count_params(model: nn.Module) -> int:
    """Count all parameters, frozen ones too. A shared parameter counts once; buffers do not count."""
    return sum(p.numel() for p in model.parameters())


def params_by_part(model: nn.Module) -> dict[str, int]:
    """Count parameters by part (`FLOP_PARTS`), adding up to `count_params`.

    `other` holds position embeddings, class and register tokens and LayerScale; a gate belongs to `qkv`.
    """
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        owner = name.split(".")[-2] if "." in name else ""
        part = "norm" if "norm" in owner else flop_part_of(name)
        counts[part] = counts.get(part, 0) + parameter.numel()
    return in_order(counts, FLOP_PARTS)
