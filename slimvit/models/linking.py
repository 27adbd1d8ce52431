"""Linking: replaces timm's blocks by classes that hand values and merged tokens to later ones, and puts them back."""

from __future__ import annotations

from typing import Any

from torch import nn

from slimvit.models.base import AttentionBlock, is_linked, plain_type
from slimvit.models.dense.layers import DenseMixin
from slimvit.models.linked import LinkedBlocks
from slimvit.models.reduced import as_class, class_without_mixing
from slimvit.models.registry import attention_blocks, family_of


def link_block(model: nn.Module, view: AttentionBlock) -> Any:
    """Give a block and its attention their linked classes, and its container too, in place.

    Returns:
        The linked block, which mixes and merges nothing until it is told to.
    """
    block: Any = model.get_submodule(view.name)
    if is_linked(block):
        return block
    classes = family_of(model).linked
    if plain_type(block.attn) in classes:  # not an attention without heads
        attn = as_class(block.attn, classes[plain_type(block.attn)])
        no_mixes(attn)
        block.attn = attn
    block = as_class(block, classes[type(block)])
    _replace(model, view.name, block)
    _link_container(model, view.name.rpartition(".")[0])
    return block


def no_mixes(attn: Any) -> None:
    """Let a linked attention mix in no values of earlier blocks, and hand on none."""
    if "mix" in attn._parameters:
        del attn._parameters["mix"]
    attn.register_parameter("mix", None)
    attn.pairs, attn.per_head, attn.feeds = (), False, False


def unlink_blocks(model: nn.Module) -> None:
    """Put timm's own classes back, in place, for all blocks that neither mix values nor see merged tokens."""
    merged, views = False, attention_blocks(model)
    for view in views:
        merged = merged or view.merged > 0
        attn = view.attn
        if not is_linked(view.block) or merged or (isinstance(attn, DenseMixin) and (attn.pairs or attn.feeds)):
            continue
        if isinstance(attn, DenseMixin):
            del attn.mix, attn.pairs, attn.per_head, attn.feeds
            view.block.attn = as_class(attn, class_without_mixing(attn))
        plain = as_class(view.block, plain_type(view.block))
        for name in ("merges", "prefix"):
            plain.__dict__.pop(name, None)
        _replace(model, view.name, plain)
    for path in {view.name.rpartition(".")[0] for view in views}:
        blocks = model.get_submodule(path)
        if isinstance(blocks, LinkedBlocks) and not any(map(is_linked, blocks.children())):
            own = list(blocks.children())
            _replace(model, path, nn.ModuleList(own) if blocks.container is nn.ModuleList else nn.Sequential(*own))


def _link_container(model: nn.Module, path: str) -> None:
    plain: Any = model.get_submodule(path)
    if not isinstance(plain, LinkedBlocks):
        blocks = LinkedBlocks(list(plain.children()))
        blocks.container = type(plain)
        _replace(model, path, blocks)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, module)
