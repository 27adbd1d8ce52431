"""Multiply-accumulates, counted three ways that must agree: fvcore's trace, torch's counter, the closed form.

fvcore does not know ``scaled_dot_product_attention`` and leaves it out, so a handle for it is registered here; it
is exactly what head pruning saves.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from slimvit.measure.flops.closed_form import closed_form, stem_of
from slimvit.measure.flops.dense_mixes import mix_macs
from slimvit.measure.flops.operators import ELEMENTWISE, NORMS
from slimvit.measure.flops.parts import BLOCK_PARTS, FLOP_PARTS, count_params, in_order, params_by_part, part_of
from slimvit.measure.flops.torch_counter import torch_count
from slimvit.utils.errors import ModelError

__all__ = ["MacCount", "count_macs", "count_params", "params_by_part"]

TOLERANCE = 1e-3
"""Counters whose totals differ by no more than this share agree."""


@dataclass(frozen=True)
class MacCount:
    """MACs of one image. ``total`` is fvcore's count and includes the norms, and the mixes of dense attention from
    their formula; a figure that is not known is None."""

    total: int
    by_part: dict[str, int]
    """:data:`~slimvit.measure.flops.parts.PARTS` and their MACs, adding up to ``total``."""
    by_block: tuple[dict[str, int], ...]
    """One dict a transformer block: qkv, attention, proj, mlp, norm."""
    closed_form: int | None
    """From the shapes alone, without norms; None for a model that is no plain ViT."""
    torch_counter: int | None
    """torch.utils.flop_counter, halved; without norms. None when that torch version does not see attention."""
    uncounted: tuple[str, ...] = ()
    """Operators that were skipped although they may multiply, by name; normally none."""

    @property
    def without_norm(self) -> int:
        """fvcore's count without norms and mixes: what the other counters see too."""
        return self.total - self.by_part["norm"] - self.by_part.get("mixes", 0)

    @property
    def agrees(self) -> bool:
        """Whether all known counts, without norms, lie within 0.1 % of each other."""
        known = list(self._counts().values())
        return max(known) - min(known) <= TOLERANCE * max(known)

    def disagreement(self) -> str | None:
        """One sentence for the report when counters disagree or operators were skipped; None when all is well."""
        parts = []
        if not self.agrees:
            figures = ", ".join(f"{name} {count / 1e9:.4f} G" for name, count in self._counts().items())
            parts.append(f"the MAC counters disagree by more than 0.1 % (without norms: {figures})")
        if self.uncounted:
            parts.append(f"the MAC count leaves out operators it does not know: {', '.join(self.uncounted)}")
        return "; ".join(parts) or None

    def _counts(self) -> dict[str, int]:
        counts = {"fvcore": self.without_norm, "closed form": self.closed_form, "torch": self.torch_counter}
        return {name: count for name, count in counts.items() if count is not None}


def count_macs(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> MacCount:
    """MACs of one image [C, H, W] = ``input_size`` (default: the model's own) in eval mode.

    The model may live on any device, meta included, and is neither run nor changed: stand-ins with its shapes are.
    Raises :class:`ModelError` when the model has no input size of its own or does not take the given one.
    """
    size = input_size or input_size_of(model)
    try:
        on_meta = _stand_in(model, "meta")
        by_torch, mixes = torch_count(on_meta, size), mix_macs(on_meta, size)
        analysis = _trace(_stand_in(model, "cpu"), size)
    except AssertionError as error:
        shape = "x".join(map(str, size))
        raise ModelError(f"{type(model).__name__} does not take images of {shape}: {error}") from error
    own = _own_counts(analysis.by_module_and_operator())
    for name, macs in mixes.items():
        own.setdefault(name, Counter())["mixes"] += macs
    by_part: Counter[str] = Counter()
    for counts in own.values():
        by_part.update(counts)
    skipped = sorted(set(analysis.unsupported_ops()) - ELEMENTWISE)
    return MacCount(
        total=sum(by_part.values()),
        by_part=in_order(by_part, FLOP_PARTS),
        by_block=_by_block(own),
        closed_form=closed_form(model, size),
        torch_counter=by_torch,
        uncounted=tuple(name.removeprefix("aten::") for name in skipped),
    )


def input_size_of(model: nn.Module) -> tuple[int, int, int]:
    """The images [C, H, W] that a model takes; raises :class:`ModelError` where it does not say."""
    stem, side = stem_of(model), getattr(getattr(model, "patch_embed", None), "img_size", None)
    if stem is not None and side is not None:
        return (stem.in_channels, *side)
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if size is None:
        raise ModelError(f"{type(model).__name__} names no input size; give count_macs one, like (3, 224, 224)")
    return tuple(size)


def _stand_in(model: nn.Module, device: str) -> nn.Module:
    """A copy in eval mode with the same shapes and zeros for values; no weight is read or copied."""
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.zeros(p.shape, device=device), requires_grad=False)
    for b in model.buffers():
        dtype = torch.float32 if b.is_floating_point() else b.dtype
        memo[id(b)] = torch.zeros(b.shape, device=device, dtype=dtype)
    return copy.deepcopy(model, memo).eval()


def _sdpa_macs(inputs: list[Any], _: list[Any]) -> int:
    """q [..., Nq, d], k [..., Nk, d], v [..., Nk, e] -> MACs of both products, Nq * Nk * (d + e) a head and image."""
    q, k, v = (value.type().sizes() for value in inputs[:3])
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _trace(model: nn.Module, size: tuple[int, int, int]) -> Any:
    """fvcore's analysis of one image, with attention counted and its log messages off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fvcore calls torch.jit.script while it is imported
        from fvcore.nn import FlopCountAnalysis
        from fvcore.nn.jit_handles import norm_flop_counter

    analysis = FlopCountAnalysis(model, torch.zeros(1, *size, device="cpu"))
    analysis.set_op_handle("aten::scaled_dot_product_attention", _sdpa_macs)
    analysis.set_op_handle("aten::rms_norm", norm_flop_counter(2))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with torch.no_grad():
        analysis.total()
    return analysis


def _own_counts(counts: dict[str, Counter[str]]) -> dict[str, Counter[str]]:
    """MACs by part of each module itself: what fvcore counts for the module less what it counts for its children."""
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
    """An attention that multiplies with the weights of its qkv by itself does what the layer would have done."""
    if operator in NORMS:
        return "norm"
    return "qkv" if operator == "linear" and name.endswith(".attn") else part_of(name)


def _by_block(own: dict[str, Counter[str]]) -> tuple[dict[str, int], ...]:
    """Sums over the modules inside each ``[layers.i.]blocks.j``, in forward order."""
    blocks: dict[str, Counter[str]] = {}
    for name, counts in own.items():
        before, found, after = name.partition("blocks.")
        if found and before in ("", f"{before.rpartition('.')[0]}."):
            blocks.setdefault(before + found + after.split(".")[0], Counter()).update(counts)
    return tuple(in_order(counts, BLOCK_PARTS) for counts in blocks.values())
