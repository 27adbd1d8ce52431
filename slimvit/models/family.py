"""What slimvit needs to know about a model: its attention blocks, and the residual stream as a list of steps.

Everything family-specific lives in one adapter a family (vit.py); the rest of slimvit sees only these types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from slimvit.errors import ModelError
from slimvit.plan import BlockPlan, SlimPlan

TimmModule: TypeAlias = Any
"""A module whose attributes timm defines (``blocks``, ``qkv``, ``num_heads``): to mypy, every attribute of an
``nn.Module`` is a tensor or a module, so a type would only be in the way."""


ToStream: TypeAlias = Callable[[Tensor, tuple[int, ...]], Tensor]
"""Brings features out of the layout an attention computes in, windows for one, into the stream's: [..., k] and the
stream's size without batch and channels -> [B, ..., k]."""


def as_it_is(features: Tensor, _: tuple[int, ...]) -> Tensor:
    """Where attention computes in the stream's own layout."""
    return features


@dataclass(frozen=True)
class Branch:
    """One residual branch: ``stream + scale(body(norm(stream)))``, where ``body`` ends in the linear layer ``out``.

    ``out`` is ``proj`` of an attention or ``fc2`` of an MLP. Dropout and drop-path are left out: branches are run
    in eval mode only.
    """

    name: str
    norm: nn.Module
    body: Callable[[Tensor], Tensor]
    scale: nn.Module
    out: nn.Linear
    to_stream: ToStream = as_it_is

    def run(self, stream: Tensor) -> Tensor:
        """The branch before its LayerScale. [B, ..., C] -> [B, ..., C]."""
        return self.body(self.norm(stream))

    def apply(self, stream: Tensor) -> Tensor:
        """The stream after this branch. [B, ..., C] -> [B, ..., C]."""
        return stream + self.scale(self.run(stream))

    def run_with_features(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        """The branch's output [B, ..., C] and the input of its last linear layer, token by token [B, ..., k]."""
        seen: list[Tensor] = []
        hook = self.out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            output = self.run(stream)
        finally:
            hook.remove()
        return output, self.to_stream(seen[0], stream.shape[1:-1])


@dataclass(frozen=True)
class Step:
    """A part of the forward pass that is never refitted: the embedding, a patch merging."""

    name: str
    apply: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AttentionBlock:
    """A block's attention module. ``attn`` has timm's ``num_heads``, ``qkv`` and ``proj``."""

    name: str
    stage: int
    block: TimmModule
    attn: TimmModule
    tokens: int
    """Tokens of one image that pass through it."""
    window: int
    """Tokens that each token attends to."""
    to_stream: ToStream = as_it_is

    @property
    def head_dim(self) -> int:
        """Channels of one head; WindowAttention does not keep it."""
        attn = self.attn
        return attn.head_dim if hasattr(attn, "head_dim") else attn.proj.in_features // attn.num_heads


@dataclass(frozen=True)
class Family:
    """One adapter: which models it understands, and how it takes them apart."""

    name: str
    check: Callable[[nn.Module], str | None]
    """None when the model is understood, otherwise the reason it is not."""
    owns: Callable[[nn.Module], bool]
    """Whether the model is of this family at all."""
    attention_blocks: Callable[[nn.Module], list[AttentionBlock]]
    steps: Callable[[nn.Module], list[Branch | Step]]
    """The forward pass up to the final norm, images [B, C, H, W] in, stream out: [B, N, C], Swin [B, H, W, C]."""
    supported: str
    """The supported models in words, for error messages."""


def families() -> tuple[Family, ...]:
    from slimvit.models.swin import SWIN
    from slimvit.models.vit import VIT

    return (VIT, SWIN)


def model_name(model: TimmModule) -> str:
    """The timm name of a model, or its class name."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return cfg.get("architecture") or type(model).__name__


def family_of(model: nn.Module) -> Family:
    """The adapter of a model; raises :class:`ModelError` for every model that is not understood."""
    supported = "; ".join(f.supported for f in families())
    for family in families():
        if family.owns(model):
            reason = family.check(model)
            if reason is None:
                return family
            raise ModelError(f"{model_name(model)}: {reason}; supported: {supported}")
    raise ModelError(
        f"{model_name(model)}: {type(model).__module__}.{type(model).__name__} is not a model slimvit can prune; "
        f"supported: {supported}"
    )


def attention_blocks(model: nn.Module) -> list[AttentionBlock]:
    return family_of(model).attention_blocks(model)


def steps(model: nn.Module) -> list[Branch | Step]:
    return family_of(model).steps(model)


def plan_of(model: TimmModule) -> SlimPlan:
    """The heads a model keeps, by original id: all of them until it is pruned."""
    plan = getattr(model, "slim_plan", None)
    if plan is not None:
        return plan
    blocks = attention_blocks(model)
    full = tuple(BlockPlan(b.name, b.attn.num_heads, tuple(range(b.attn.num_heads)), b.stage) for b in blocks)
    return SlimPlan(full, model_name(model))


def head_macs(model: nn.Module) -> list[int]:
    """MACs that one head costs in each block: its share of qkv, gate and proj, and its two attention products."""
    counts = []
    for view in attention_blocks(model):
        attn, d = view.attn, view.head_dim
        linears = 4 if getattr(attn, "gate", None) is None else 5
        counts.append(view.tokens * d * (linears * attn.proj.out_features + 2 * view.window))
    return counts
