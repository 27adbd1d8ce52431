"""The types that describe a model to slimvit: its family, its attention blocks, and its forward pass as steps.

A family is one file in `models/families/`. The rest of slimvit sees only the types of this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from slimvit.models.empty import EmptyAttention, EmptyNorm
from slimvit.models.head_parts import HeadParts
from slimvit.models.tokens.merging import Merge, Tokens, match, merge

TimmModule: TypeAlias = Any
"""A module whose attributes timm defines, such as `blocks`, `qkv` and `num_heads`.

mypy takes every attribute of an `nn.Module` for a tensor or a module, so a narrower type would need casts."""

ImageSize: TypeAlias = tuple[int, int, int]
"""Channels, height and width of one image."""

ToStream: TypeAlias = Callable[[Tensor, tuple[int, ...]], Tensor]
"""Maps features from the layout of an attention, such as windows, to the layout of the residual stream.

Takes features [..., k] and the stream's size without batch and channels; returns [B, ..., k]."""


def as_it_is(features: Tensor, _: tuple[int, ...]) -> Tensor:
    """Return the features [B, ..., k] unchanged: the attention computes in the layout of the stream."""
    return features


class Attended(NamedTuple):
    """The result of an attention."""

    output: Tensor
    """The output [B, ..., C]."""
    values: Tensor | None = None
    """Its own unmixed values [B, ..., k]; None where no later block needs them."""
    keys: Tensor | None = None
    """The keys of every head [B, heads, n, d] where the block merges tokens; None in an attention without heads."""

    @classmethod
    def of(cls, found: Any) -> Attended:
        """Return the result of any attention; timm's return the output alone."""
        return found if isinstance(found, cls) else cls(found)


class Carried(NamedTuple):
    """What the blocks of a stage hand on to later ones besides the stream."""

    values: tuple[Tensor | None, ...] = ()
    """The values of the blocks so far, for the present tokens; None for blocks that keep none."""
    tokens: Tokens | None = None
    """The present tokens; None before the first merging."""

    def adding(self, values: Tensor | None) -> Carried:
        """Return what is carried on after a block that keeps these values."""
        return Carried((*self.values, values), self.tokens)

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of a linked attention."""
        return {"earlier": self.values} | ({} if self.tokens is None else {"sizes": self.tokens.sizes})

    def merged(self, x: Tensor, keys: Tensor | None, r: int, prefix: int) -> tuple[Tensor, Carried]:
        """Merge the r most similar tokens of the stream [B, n, C] and of all values.

        Tokens are compared by the mean of their keys over the heads, without heads by the stream itself.

        Args:
            x: The stream after the attention.
            keys: The keys of the attention.
            r: Number of tokens to merge; 0 changes nothing.
            prefix: Number of tokens at the front that are never merged.
        """
        if r == 0:
            return x, self
        tokens = Tokens.unmerged(x) if self.tokens is None else self.tokens
        by: Merge = match(x if keys is None else keys.mean(1), prefix, r)
        values = tuple(None if v is None else merge(v, tokens.sizes, by) for v in self.values)
        return merge(x, tokens.sizes, by), Carried(values, tokens.after(by))


NOTHING = Carried()
"""What is carried into the first block of a stage."""


class State(NamedTuple):
    """The state of a forward pass between two steps."""

    stream: Tensor
    """The residual stream [B, ..., C]."""
    carried: Carried = NOTHING
    """What the blocks of this stage so far hand on."""
    shared: Any = None
    """What the embedding hands to all blocks besides the stream, such as rotary positions."""


def no_arguments(_: Any) -> dict[str, Any]:
    """Return no keyword arguments: the branch needs the stream alone."""
    return {}


@dataclass(frozen=True)
class Branch:
    """One residual branch: `stream + scale(body(norm(stream)))`.

    Dropout and drop-path are left out, since branches are run in eval mode only.
    """

    name: str
    norm: nn.Module
    body: Callable[..., Any]
    scale: Callable[[Tensor], Tensor]
    """LayerScale, or the norm of a post-norm block."""
    out: nn.Linear
    """The linear layer that `body` ends in: `proj` of an attention, `fc2` of an MLP."""
    to_stream: ToStream = as_it_is
    attends: bool = False
    """Whether this is an attention, not an MLP."""
    linked: bool = False
    """Whether `body` is a linked attention: it takes `Carried.arguments` and returns `Attended`."""
    merges: int = 0
    """Tokens that the block merges behind this branch."""
    prefix: int = 0
    """Tokens at the front that are never merged."""
    shared_arguments: Callable[[Any], dict[str, Any]] = no_arguments
    """Maps `State.shared` to keyword arguments of `body`."""

    def run(self, state: State) -> Attended:
        """Compute the branch before its scale; an MLP and a plain attention give an output alone."""
        carried = state.carried.arguments() if self.linked else {}
        found = Attended.of(self.body(self.norm(state.stream), **carried, **self.shared_arguments(state.shared)))
        return found if self.merges else found._replace(keys=None)

    def after(self, state: State, found: Attended) -> State:
        """Return the state after this branch gave `found`, and the block merged its tokens."""
        stream, carried = state.stream + self.scale(found.output), state.carried
        if self.attends:
            stream, carried = carried.adding(found.values).merged(stream, found.keys, self.merges, self.prefix)
        return State(stream, carried, state.shared)

    def apply(self, state: State) -> State:
        """Run the branch and add its output to the stream."""
        return self.after(state, self.run(state))

    def run_with_features(self, state: State) -> tuple[Tensor, Attended]:
        """Compute the input of the branch's last linear layer.

        Returns:
            The features [B, ..., k], token by token, and the result of the branch.
        """
        features: list[Tensor] = []
        hook = self.out.register_forward_pre_hook(lambda _, args: features.append(args[0]))
        try:
            found = self.run(state)
        finally:
            hook.remove()
        return self.to_stream(features[0], state.stream.shape[1:-1]), found


@dataclass(frozen=True)
class Gamma:
    """LayerScale as a parameter of the block, as in BEiT and EVA."""

    gamma: Tensor

    def __call__(self, output: Tensor) -> Tensor:
        """Scale `output` [B, ..., C] channel by channel."""
        return self.gamma * output


def _scale(block: TimmModule, number: int) -> Callable[[Tensor], Tensor]:
    gamma = getattr(block, f"gamma_{number}", None)
    return getattr(block, f"ls{number}", nn.Identity()) if gamma is None else Gamma(gamma)


def block_branches(
    name: str,
    block: TimmModule,
    attend: Callable[..., Any],
    to_stream: ToStream = as_it_is,
    shared_arguments: Callable[[Any], dict[str, Any]] = no_arguments,
    post_norm: bool = False,
) -> list[Branch]:
    """Return the two branches of a block with timm's names: attention and MLP.

    Args:
        name: The block's name in the model.
        block: A module with `norm1`, `norm2`, `attn.proj` and `mlp.fc2`.
        attend: The attention as a function of the normed stream; it ends in `attn.proj`.
        to_stream: Maps the input of `attn.proj` to the layout of the stream.
        shared_arguments: Maps what the embedding hands to all blocks to keyword arguments of `attend`.
        post_norm: Whether the norms stand behind the branches, not before them.
    """
    norms, scales = (block.norm1, block.norm2), (_scale(block, 1), _scale(block, 2))
    if post_norm:
        norms, scales = (nn.Identity(), nn.Identity()), norms
    attention = Branch(
        f"{name}.attn", norms[0], attend, scales[0], block.attn.proj, to_stream,
        attends=True, linked=is_linked(block), merges=getattr(block, "merges", 0), prefix=getattr(block, "prefix", 0),
        shared_arguments=shared_arguments,
    )  # fmt: skip
    return [attention, Branch(f"{name}.mlp", norms[1], block.mlp, scales[1], block.mlp.fc2)]


@dataclass(frozen=True)
class Step:
    """A part of the forward pass that is never refitted: the embedding, a patch merging."""

    name: str
    body: Callable[[Tensor], Tensor | State]
    """Returns a whole `State` where it hands more to the blocks than the stream."""

    def apply(self, state: State) -> State:
        """Run the step. It begins a new stage, so the values of earlier blocks are dropped."""
        output = self.body(state.stream)
        return output if isinstance(output, State) else State(output)


@dataclass(frozen=True)
class AttentionBlock:
    """A transformer block: an attention with timm's `num_heads` and `proj`, and an MLP."""

    name: str
    stage: int
    block: TimmModule
    attn: TimmModule
    tokens: int
    """Tokens of one image that pass through the attention, padding included."""
    window: int
    """Tokens that each token attends to."""
    mlp_tokens: int
    """Tokens of one image that pass through the MLP."""
    head_parts_of: Callable[[TimmModule, int], HeadParts]
    """Maps an attention with heads, and its head_dim, to the parameters that belong to the heads."""
    to_stream: ToStream = as_it_is
    post_norm: bool = False
    """Whether the norms stand behind the branches."""
    merged: int = 0
    """Tokens of one image that the block merges between attention and MLP."""
    mergeable: int = 0
    """Most tokens that the block could merge if no block did; 0 where it merges none."""
    prefix: int = 0
    """Tokens at the front of the stream that are never merged."""
    whole_tokens: str = "its family has no token merging"
    """Why `mergeable` is 0."""

    @property
    def head_parts(self) -> HeadParts:
        """The parameters that belong to the heads."""
        return self.head_parts_of(self.attn, self.head_dim) if self.attn.num_heads else HeadParts()

    @property
    def mlp(self) -> TimmModule:
        """The block's MLP."""
        return self.block.mlp

    @property
    def head_dim(self) -> int:
        """Channels of one head. timm's WindowAttention does not store it."""
        attn = self.attn
        return attn.head_dim if hasattr(attn, "head_dim") else attn.proj.in_features // attn.num_heads

    @property
    def qk_dim(self) -> int:
        """Channels of one head's queries and keys, where they are not those of its values."""
        return getattr(self.attn, "qk_dim", self.head_dim)


@dataclass(frozen=True)
class BlockWidth:
    """The width of one block, from which a family makes arguments of timm's constructor."""

    name: str
    stage: int
    heads: int
    original_heads: int
    head_dim: int
    mlp_ratio: float | None
    """Hidden features over embed_dim; None where no MLP of the model was cut."""


def one_width(blocks: Sequence[BlockWidth]) -> dict[str, Any] | str:
    """Return timm's arguments for constructors that take one MLP ratio, and whose heads divide embed_dim."""
    if cut := next((b for b in blocks if b.heads < b.original_heads), None):
        kept = f"{cut.name} keeps {cut.heads} of {cut.original_heads} heads"
        return f"{kept}, and the heads of a plain timm ViT share out embed_dim, however few they are"
    ratio = blocks[0].mlp_ratio
    return {} if ratio is None else {"mlp_ratio": ratio}


@dataclass(frozen=True)
class Family:
    """One family of models: which models belong to it, and how slimvit takes them apart.

    The first five fields are needed to prune, refit and train. The others have defaults that switch a feature off.
    """

    name: str
    owns: Callable[[nn.Module], bool]
    """Whether the model is of this family, supported or not."""
    attention_blocks: Callable[[nn.Module], list[AttentionBlock]]
    """The model's blocks in forward order."""
    steps: Callable[[nn.Module], list[Branch | Step]]
    """The forward pass up to the final norm: images [B, C, H, W] -> stream [B, N, C], in Swin [B, H, W, C]."""
    supported: str
    """The supported models in words, for error messages."""
    check: Callable[[nn.Module], str | None] = lambda model: None
    """Why a model of this family is not supported; None when it is."""
    timm_modules: tuple[str, ...] = ()
    """The modules of `timm.models` that define models of this family, for `slimvit models`."""
    arguments: Callable[[nn.Module], dict[str, Any]] = lambda model: {}
    """Arguments of timm's constructor whose values changed since the model was built, such as pooling or windows.

    The number of classes and the image size are handled for all families."""
    linked: Mapping[type, type[Any]] = field(default_factory=dict)
    """Class of a plain block or attention -> its linked class, for dense attention. Empty: the family has none."""
    no_dense: Callable[[nn.Module], str | None] = lambda model: None
    """Why a supported model cannot have dense attention; None when it can."""
    closed_form: Callable[[Any, ImageSize], int | None] = lambda model, size: None
    """MACs of one image [C, H, W], without norms, from the shapes of the layers; None without a formula."""
    timm_arguments: Callable[[Sequence[BlockWidth]], dict[str, Any] | str] = one_width
    """Arguments of timm's constructor for these block widths, or why it has none."""

    def why_no_dense(self, model: nn.Module) -> str | None:
        """Return why a supported model cannot have dense attention; None when it can."""
        return self.no_dense(model) or (None if self.linked else f"the family {self.name} has no dense attention")


def layer_types(*modules: nn.Module | None) -> str:
    """Return the names of the timm classes of all modules inside, in order."""
    return " ".join(plain_type(m).__name__ for module in modules if module is not None for m in module.modules())


def plain_type(module: nn.Module) -> type:
    """Return the timm class that a linked or head-pruned module replaces; for other modules their own class."""
    return getattr(type(module), "plain", type(module))


def is_linked(module: nn.Module) -> bool:
    """Return whether a block shares values or merged tokens with other blocks, in either direction."""
    return hasattr(type(module), "plain")


def fits_block(block: TimmModule, name: str, blocks: tuple[type, ...], attentions: tuple[type, ...]) -> str | None:
    """Return why a block is none of timm's `blocks` around one of its `attentions`; None when it is."""
    if plain_type(block) not in blocks:
        return f"{name} is a {type(block).__name__}, not timm's {_or(blocks)}"
    attn = block.attn
    if plain_type(attn) not in (*attentions, EmptyAttention):
        return f"{name}.attn is a {type(attn).__module__}.{type(attn).__name__}, not timm's {_or(attentions)}"
    if not isinstance(getattr(block.mlp, "fc2", None), nn.Linear):
        return f"{name}.mlp is a {type(block.mlp).__name__} without a linear fc2"
    return None


def fits_post_norm(block: TimmModule, name: str) -> str | None:
    """Return why the refit cannot see through the norms behind a block's branches; None when it can."""
    for norm in (block.norm1, block.norm2):
        if not isinstance(norm, nn.LayerNorm | EmptyNorm):
            return f"{name} is normalised by a {type(norm).__name__}, not by a LayerNorm"
    return None


def _or(types: tuple[type, ...]) -> str:
    return " or ".join(t.__name__ for t in types)
