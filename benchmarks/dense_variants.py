"""Ways to insert dense attention that slimvit does not offer, tried by dense_ablation.py: other alignments of the
values, fewer of them, and mixes that do not start at zero."""

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
from slimvit.models.families.vit import DenseAttention
from slimvit.models.reduced import as_class
from slimvit.models.registry import steps

Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Arm:
    """One way to insert dense attention into a network that was cut and refitted."""

    mix: str | None = "layer"
    """`layer`, `head`, or None for the control without."""
    align: str = "id"
    """Which heads meet: of the same original `id`; of the same `slot`, counted over the kept heads; `map`: each with
    every earlier one, a learned weight for every two; `linear`: through a learned matrix a pair of blocks."""
    start: str = "zero"
    """`zero`; `constant` 0.1; `normal` N(0, 0.1); `normal, refit`: N(0, 1) over the root of their number, and the
    refit again with them in place; `solved`: least squares, then the refit again, twice; `refit`: the refit alone, as
    often, which is the control of `solved`."""
    first: bool = False
    """Only the values of the first block."""
    lr_scale: float = 10.0
    """Learning rate of the mixes, in units of the others'."""

    def insert(self, model: Any, original: Any, calibration: Batches, seed: int) -> Any:
        if self.mix is None:
            return STARTS[self.start](model, original, calibration, seed)
        base = model if self.align == "id" else _by_slot(model)
        dense = slimvit.insert_dense_attention(base, self.mix)
        if self.first:
            _change_pairs(dense, lambda attn, pairs: [p for p in pairs if p.earlier == 0])
        if self.align == "map":
            heads = [block.attn.num_heads for block in dense.blocks]
            _change_pairs(dense, lambda attn, pairs: _every_two(pairs, attn.num_heads, heads))
        if self.align == "linear":
            _map_linearly(dense)
        return STARTS[self.start](dense, original, calibration, seed)


def _by_slot(model: Any) -> Any:
    """The same network, whose heads are numbered by where they are instead of where they came from."""
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


def _every_two(pairs: Sequence[Pair], mine: int, heads: Sequence[int]) -> list[Pair]:
    """Every head here with every head of each earlier block: one :class:`Pair` a cyclic shift, as in a pair no head
    may come twice."""
    found = []
    for earlier in (p.earlier for p in pairs):
        most = max(mine, heads[earlier])
        for shift in range(most):
            here = tuple(h for h in range(mine) if (h + shift) % most < heads[earlier])
            found.append(Pair(earlier, here, here, tuple((h + shift) % most for h in here)))
    return [p for p in found if p.heads]


class LinearlyMapped(DenseAttention):
    """Adds the values of every earlier block after a learned matrix, instead of a learned scalar."""

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
    """In place, block by block: the mixes that bring the stream nearest to the original's, by least squares.

    A branch is affine in its mixes, out(w) = out(0) + sum w_i R_i, so R_i is what changes when w_i alone is 1.
    """
    model.eval()
    now, goal = ([State(x) for x, _ in calibration] for _ in range(2))
    for mine, theirs in zip(steps(model), steps(original), strict=True):
        goal = [theirs.apply(state) for state in goal]
        mix = getattr(model.get_submodule(mine.name), "mix", None) if isinstance(mine, Branch) else None
        if mix is not None:
            assert isinstance(mine, Branch)
            mix.copy_(_solve(mine, mix, now, goal, ridge))
        now = [mine.apply(state) for state in now]


def _solve(branch: Branch, mix: Tensor, now: Sequence[State], goal: Sequence[State], ridge: float) -> Tensor:
    rr, re = torch.zeros(len(mix), len(mix)), torch.zeros(len(mix))
    for state, wanted in zip(now, goal, strict=True):
        plain = _output(branch, mix, state, None)
        error = _centred(wanted.stream - state.stream - plain)
        moved = torch.stack([_centred(_output(branch, mix, state, i) - plain) for i in range(len(mix))])
        rr += moved @ moved.T
        re += moved @ error
    return torch.linalg.solve(rr + ridge * rr.diagonal().mean() * torch.eye(len(mix)), re)


def _output(branch: Branch, mix: Tensor, state: State, one: int | None) -> Tensor:
    """What the branch adds to the stream, all mixes zero except perhaps one."""
    mix.zero_()
    if one is not None:
        mix[one] = 1.0
    return branch.scale(branch.run(state)[0])


def _centred(x: Tensor) -> Tensor:
    """[B, N, C] without each channel's mean, which the bias stands for; flat."""
    return (x - x.mean((0, 1))).flatten()
