"""Variants of dense attention for dense_ablation.py: other alignments of heads, fewer values, other initial mixes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import slimvit
from slimvit.models.base import Branch, State
from slimvit.models.dense.layers import DenseMixin, Values
from slimvit.models.dense.mixing import Pair, mix_size
from slimvit.models.families.vit import LinkedAttention
from slimvit.models.reduced import as_class
from slimvit.models.registry import steps

Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Arm:
    """One variant of dense attention in a network that was cut and refitted."""

    mix: str | None = "layer"
    """`layer`, `head`, or None for the control without dense attention."""
    align: str = "id"
    """Pairs of heads that mix. `id`: same original id. `slot`: same position among the kept heads. `map`: every head
    with every earlier one, one learned weight per pair. `linear`: a learned matrix per pair of blocks."""
    start: str = "zero"
    """Initial mixes. `zero`. `constant`: 0.1. `normal`: N(0, 0.1). `normal, refit`: N(0, 1) over the root of their
    number, then a refit. `solved`: least squares, then a refit, twice. `refit`: two refits, the control of `solved`."""
    first: bool = False
    """Mix the values of the first block alone."""
    lr_scale: float = 10.0
    """Learning rate of the mixes relative to that of the other weights."""

    def insert(self, model: Any, original: Any, calibration: Batches, seed: int) -> Any:
        if self.mix is None:
            return STARTS[self.start](model, original, calibration, seed)
        base = model if self.align == "id" else _by_slot(model)
        dense = slimvit.insert_dense_attention(base, self.mix)
        if self.first:
            _change_pairs(dense, lambda attn, pairs: [p for p in pairs if p.earlier == 0])
        if self.align == "map":
            heads = [block.attn.num_heads for block in dense.blocks]
            _change_pairs(dense, lambda attn, pairs: _all_pairs(pairs, attn.num_heads, heads))
        if self.align == "linear":
            _map_linearly(dense)
        return STARTS[self.start](dense, original, calibration, seed)


def _by_slot(model: Any) -> Any:
    """The same network, with heads numbered by position instead of original id."""
    copied = copy.deepcopy(model)
    plan = model.slim_plan
    copied.slim_plan = plan.keeping(heads=[range(len(b.kept_heads)) for b in plan.blocks])
    return copied


def _mixing(model: Any) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, DenseMixin) and m.mix is not None]


def _change_pairs(model: Any, change: Callable[[Any, tuple[Pair, ...]], Sequence[Pair]]) -> None:
    for attn in _mixing(model):
        attn.pairs = tuple(change(attn, attn.pairs))
        size = mix_size(attn.pairs, attn.per_head)
        attn.mix = nn.Parameter(torch.zeros(size)) if size else None


def _all_pairs(pairs: Sequence[Pair], own: int, heads: Sequence[int]) -> list[Pair]:
    """Every own head with every head of each earlier block, as one `Pair` per cyclic shift, which uses a head once."""
    shifted = []
    for earlier in (p.earlier for p in pairs):
        size = max(own, heads[earlier])
        for shift in range(size):
            here = tuple(h for h in range(own) if (h + shift) % size < heads[earlier])
            shifted.append(Pair(earlier, here, here, tuple((h + shift) % size for h in here)))
    return [p for p in shifted if p.heads]


class LinearlyMapped(LinkedAttention):
    """Dense attention with a learned matrix per earlier block in place of a learned scalar."""

    maps: nn.ParameterList

    def needed(self, earlier: Values) -> list[Tensor]:
        return [v @ m for v, m in zip(super().needed(earlier), self.maps, strict=True)]


def _map_linearly(model: Any) -> None:
    widths = [block.attn.attn_dim for block in model.blocks]
    for block in (block for block in model.blocks if block.attn.mix is not None):
        attn = as_class(block.attn, LinearlyMapped)
        here = tuple(range(attn.num_heads))
        attn.maps = nn.ParameterList(torch.zeros(widths[p.earlier], attn.attn_dim) for p in attn.pairs)
        attn.pairs = tuple(Pair(p.earlier, here, here, here) for p in attn.pairs)
        attn.mix = nn.Parameter(torch.ones(len(attn.pairs)), requires_grad=False)
        block.attn = attn


def _zero(model: Any, original: Any, calibration: Batches, seed: int) -> Any:
    return model


def _constant(model: Any, original: Any, calibration: Batches, seed: int) -> Any:
    for attn in _mixing(model):
        nn.init.constant_(attn.mix, 0.1)
    return model


def _normal(model: Any, original: Any, calibration: Batches, seed: int, std: float = 0.1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for attn in _mixing(model):
        nn.init.normal_(attn.mix, 0.0, std, generator=generator)
    return model


def _normal_refit(model: Any, original: Any, calibration: Batches, seed: int) -> Any:
    model = _normal(model, original, calibration, seed, 1.0)
    for attn in _mixing(model):
        attn.mix.data /= len(attn.pairs) ** 0.5
    return slimvit.refit(model, original, calibration)


def _solved(model: Any, original: Any, calibration: Batches, seed: int) -> Any:
    for _ in range(2):
        solve_mixes(model, original, calibration)
        model = slimvit.refit(model, original, calibration)
    return model


def _refit(model: Any, original: Any, calibration: Batches, seed: int) -> Any:
    for _ in range(2):
        model = slimvit.refit(model, original, calibration)
    return model


STARTS = {
    "zero": _zero, "constant": _constant, "normal": _normal, "normal, refit": _normal_refit, "solved": _solved,
    "refit": _refit,
}  # fmt: skip


@torch.no_grad()
def solve_mixes(model: Any, original: Any, calibration: Batches, ridge: float = 0.01) -> None:
    """Set the mixes in place, block by block, to the least-squares fit of the original's stream.

    A branch is affine in its mixes, out(w) = out(0) + sum w_i R_i; R_i is the change of the output at w_i = 1.
    """
    model.eval()
    states, targets = ([State(x) for x, _ in calibration] for _ in range(2))
    for step, original_step in zip(steps(model), steps(original), strict=True):
        targets = [original_step.apply(state) for state in targets]
        mix = getattr(model.get_submodule(step.name), "mix", None) if isinstance(step, Branch) else None
        if mix is not None:
            assert isinstance(step, Branch)
            mix.copy_(_solve(step, mix, states, targets, ridge))
        states = [step.apply(state) for state in states]


def _solve(branch: Branch, mix: Tensor, states: Sequence[State], targets: Sequence[State], ridge: float) -> Tensor:
    rr, re = torch.zeros(len(mix), len(mix)), torch.zeros(len(mix))
    for state, target in zip(states, targets, strict=True):
        plain = _output(branch, mix, state, None)
        error = _centred(target.stream - state.stream - plain)
        moved = torch.stack([_centred(_output(branch, mix, state, i) - plain) for i in range(len(mix))])
        rr += moved @ moved.T
        re += moved @ error
    return torch.linalg.solve(rr + ridge * rr.diagonal().mean() * torch.eye(len(mix)), re)


def _output(branch: Branch, mix: Tensor, state: State, one: int | None) -> Tensor:
    """Output of the branch with all mixes zero, or with mix `one` at 1."""
    mix.zero_()
    if one is not None:
        mix[one] = 1.0
    return branch.scale(branch.run(state).output)


def _centred(x: Tensor) -> Tensor:
    """[B, N, C] minus the mean of each channel (the part of the bias), flattened."""
    return (x - x.mean((0, 1))).flatten()
