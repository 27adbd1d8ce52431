"""What slimvit needs to know about a model: its attention blocks, and the residual stream as a list of steps.

Everything family-specific lives in one adapter a family (vit.py); the rest of slimvit sees only these types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from slimvit.models.empty import EmptyAttention, EmptyNorm
from slimvit.models.head_parts import HeadParts

TimmModule: TypeAlias = Any
"""A module whose attributes timm defines (``blocks``, ``qkv``, ``num_heads``): to mypy, every attribute of an
``nn.Module`` is a tensor or a module, so a type would only be in the way."""


ToStream: TypeAlias = Callable[[Tensor, tuple[int, ...]], Tensor]
"""Brings features out of the layout an attention computes in, windows for one, into the stream's: [..., k] and the
stream's size without batch and channels -> [B, ..., k]."""


def as_it_is(features: Tensor, _: tuple[int, ...]) -> Tensor:
    """Where attention computes in the stream's own layout."""
    return features


class State(NamedTuple):
    """Where a walk through a model stands: the stream [B, ..., C], what the attention blocks of this stage have left
    for later ones (None from those that leave nothing), and what the embedding hands to all of them besides the
    stream, such as rotary positions."""

    stream: Tensor
    values: tuple[Tensor | None, ...] = ()
    shared: Any = None


def nothing(_: Any) -> dict[str, Any]:
    """What a branch takes that needs the stream alone."""
    return {}


@dataclass(frozen=True)
class Branch:
    """One residual branch: ``stream + scale(body(norm(stream)))``, where ``body`` ends in the linear layer ``out``.

    ``out`` is ``proj`` of an attention or ``fc2`` of an MLP. ``scale`` is LayerScale, or in post-norm blocks the norm.
    Dropout and drop-path are left out: branches are run in eval mode only.
    """

    name: str
    norm: nn.Module
    body: Callable[..., Any]
    scale: Callable[[Tensor], Tensor]
    out: nn.Linear
    to_stream: ToStream = as_it_is
    attends: bool = False
    """An attention, not an MLP."""
    mixes: bool = False
    """A dense attention: ``body`` takes the values of ``earlier`` blocks and gives its own besides its output."""
    takes: Callable[[Any], dict[str, Any]] = nothing
    """What ``body`` takes of that which the embedding hands to all blocks, by name."""

    def run(self, state: State) -> tuple[Tensor, Tensor | None]:
        """The branch before its scale [B, ..., C], and the values it leaves for later blocks."""
        normed, more = self.norm(state.stream), self.takes(state.shared)
        return self.body(normed, earlier=state.values, **more) if self.mixes else (self.body(normed, **more), None)

    def after(self, state: State, output: Tensor, values: Tensor | None) -> State:
        """The state after this branch gave ``output`` [B, ..., C] and ``values``."""
        left = (*state.values, values) if self.attends else state.values
        return State(state.stream + self.scale(output), left, state.shared)

    def apply(self, state: State) -> State:
        return self.after(state, *self.run(state))

    def run_with_features(self, state: State) -> tuple[Tensor, Tensor | None]:
        """The input of the last linear layer, token by token [B, ..., k], and the values left for later blocks."""
        seen: list[Tensor] = []
        hook = self.out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            _, values = self.run(state)
        finally:
            hook.remove()
        return self.to_stream(seen[0], state.stream.shape[1:-1]), values


@dataclass(frozen=True)
class Gamma:
    """LayerScale as BEiT and EVA keep it: a parameter of the block."""

    gamma: Tensor

    def __call__(self, output: Tensor) -> Tensor:
        return self.gamma * output


def _scale(block: TimmModule, number: int) -> Callable[[Tensor], Tensor]:
    gamma = getattr(block, f"gamma_{number}", None)
    return getattr(block, f"ls{number}", nn.Identity()) if gamma is None else Gamma(gamma)


def block_branches(
    name: str,
    block: TimmModule,
    attend: Callable[..., Any],
    to_stream: ToStream = as_it_is,
    takes: Callable[[Any], dict[str, Any]] = nothing,
    post_norm: bool = False,
) -> list[Branch]:
    """The two branches of a block: ``attend``, which ends in ``attn.proj``, and its MLP. Each has its norm before it,
    or with ``post_norm`` behind it."""
    norms, scales = (block.norm1, block.norm2), (_scale(block, 1), _scale(block, 2))
    if post_norm:
        norms, scales = (nn.Identity(), nn.Identity()), norms
    return [
        Branch(f"{name}.attn", norms[0], attend, scales[0], block.attn.proj, to_stream, True, is_dense(block), takes),
        Branch(f"{name}.mlp", norms[1], block.mlp, scales[1], block.mlp.fc2),
    ]


@dataclass(frozen=True)
class Step:
    """A part of the forward pass that is never refitted: the embedding, a patch merging."""

    name: str
    body: Callable[[Tensor], Tensor | State]
    """Gives a whole state where it hands more to the blocks than the stream."""

    def apply(self, state: State) -> State:
        """A new stage begins with the next block: values of earlier blocks are left behind."""
        found = self.body(state.stream)
        return found if isinstance(found, State) else State(found)


@dataclass(frozen=True)
class AttentionBlock:
    """A block with its attention and its MLP. ``attn`` has timm's ``num_heads`` and ``proj``."""

    name: str
    stage: int
    block: TimmModule
    attn: TimmModule
    tokens: int
    """Tokens of one image that pass through it."""
    window: int
    """Tokens that each token attends to."""
    mlp_tokens: int
    """Tokens of one image that pass through its MLP."""
    takes_apart: Callable[[TimmModule, int], HeadParts]
    """An attention of the family that has heads, and its head_dim -> what goes with them."""
    to_stream: ToStream = as_it_is
    post_norm: bool = False
    """Whether the norms stand behind the branches."""

    @property
    def parts(self) -> HeadParts:
        """What of the attention goes with its heads."""
        return self.takes_apart(self.attn, self.head_dim) if self.attn.num_heads else HeadParts()

    @property
    def mlp(self) -> TimmModule:
        return self.block.mlp

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
    arguments: Callable[[nn.Module], dict[str, Any]]
    """Arguments of timm's constructor that build the model as it is now, where it may have changed since: windows,
    pooling. The number of classes and the image size are no family's matter."""
    no_dense: Callable[[nn.Module], str | None]
    """Why a model that is understood takes no dense attention; None when it does."""


def plain_type(module: nn.Module) -> type:
    """The timm class that a dense attention or block takes the place of; any other module's own class."""
    return getattr(type(module), "plain", type(module))


def is_dense(module: nn.Module) -> bool:
    """Whether a block gives values to later ones or mixes those of earlier ones into its own."""
    return hasattr(type(module), "plain")


def fits_block(block: TimmModule, name: str, blocks: tuple[type, ...], attentions: tuple[type, ...]) -> str | None:
    """Why a block is none of timm's ``blocks`` around one of its ``attentions``; None when it is."""
    if plain_type(block) not in blocks:
        return f"{name} is a {type(block).__name__}, not timm's {_or(blocks)}"
    attn = block.attn
    if plain_type(attn) not in (*attentions, EmptyAttention):
        return f"{name}.attn is a {type(attn).__module__}.{type(attn).__name__}, not timm's {_or(attentions)}"
    if not isinstance(getattr(block.mlp, "fc2", None), nn.Linear):
        return f"{name}.mlp is a {type(block.mlp).__name__} without a linear fc2"
    return None


def fits_post_norm(block: TimmModule, name: str) -> str | None:
    """Why the norms behind the branches of a block are none that the refit can look through; None when they are."""
    for norm in (block.norm1, block.norm2):
        if not isinstance(norm, nn.LayerNorm | EmptyNorm):
            return f"{name} is normalised by a {type(norm).__name__}, not by a LayerNorm"
    return None


def _or(types: tuple[type, ...]) -> str:
    return " or ".join(t.__name__ for t in types)
