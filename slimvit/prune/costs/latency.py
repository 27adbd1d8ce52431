"""Budgets in milliseconds, from a latency table of attentions and MLPs measured once per device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimvit.config.recipe import PruneSection
from slimvit.measure.flops.count import input_size_of
from slimvit.measure.flops.parts import count_params
from slimvit.measure.latency.machine import device_words, versions
from slimvit.measure.latency.table import LatencyTable, read_off, read_table, table_path, write_table
from slimvit.models.base import AttentionBlock
from slimvit.models.modes import device_of
from slimvit.models.parts.base import Part
from slimvit.models.parts.heads import HEADS
from slimvit.models.parts.mlp import MLP
from slimvit.models.parts.registry import PARTS
from slimvit.models.registry import attention_blocks
from slimvit.prune.costs.base import Costs, Price
from slimvit.prune.costs.budget import Budget, Checked, Target, register_budget
from slimvit.prune.costs.latency_blocks import branches_of
from slimvit.prune.costs.latency_check import check_latency
from slimvit.prune.costs.latency_profile import time_branches
from slimvit.utils.distributed import Engine
from slimvit.utils.progress import log


@dataclass(frozen=True)
class Prepared:
    """A latency table and the path of its cache file."""

    path: Path
    table: LatencyTable


class Latency(Budget):
    """Milliseconds per batch, measured on the device of the model."""

    name, unit, noun = "latency", "ms", "time"
    figure, promise = "latency_ms", "predicted for this device"

    def prepare(self, original: nn.Module, section: PruneSection, engine: Engine | None, before: Any) -> Prepared:
        """Measure in the main process and send the table to all processes."""
        path = _cache_path(original, section.latency_batch)
        if before is not None and before.path == path:
            return before
        measured = latency_table(original, section.latency_batch) if engine is None or engine.is_main else None
        table = measured if engine is None else engine.broadcast(measured)
        assert table is not None
        return Prepared(path, table)

    def costs(self, model: nn.Module, original: nn.Module, prepared: Any) -> Costs:
        """Return the costs of the original; the prices of a cut model are the same."""
        return latency_costs(original, prepared.table)

    def true_cost(self, finished: Callable[[], nn.Module], estimate: float) -> float:
        """Return the estimate, since the time is measured after the run."""
        return estimate

    def check(
        self, original: nn.Module, final: nn.Module, target: Target, section: PruneSection, engine: Engine
    ) -> Checked:
        costs = target.costs(original, original)
        return check_latency(original, final, costs, target.name, section.latency_batch, engine)


LATENCY = register_budget(Latency())


def latency_costs(model: nn.Module, table: LatencyTable) -> Costs:
    """Return the costs of a model's parts in milliseconds per batch.

    Args:
        model: The model, uncut.
        table: The latency table of the model.
    """
    blocks = attention_blocks(model)
    prices = {name: tuple(_price(table, view, part) for view in blocks) for name, part in PARTS.items()}

    def by_tokens(block: int, before: int, merged: int) -> dict[str, Price]:
        """The time of a branch is taken to be proportional to its tokens; widths are measured with all tokens only."""
        view, left = blocks[block], blocks[0].tokens - before
        shares = {HEADS.name: left / view.tokens, MLP.name: (left - merged) / view.mlp_tokens}
        return {name: _share(prices[name][block], share) for name, share in shares.items()}

    return Costs(LATENCY.unit, table.rest, prices, by_tokens)


def latency_table(model: nn.Module, batch: int) -> LatencyTable:
    """Return the latency table of attentions and MLPs by width, in milliseconds per batch.

    It is measured once per device and later read from the user's cache folder.

    Args:
        model: The model, on the device and in the dtype to measure.
        batch: Images per batch.

    Raises:
        PlanError: The device has not enough memory, or the times are too short to measure.
    """
    path = _cache_path(model, batch)
    return _cached_table(path, model) or _measure_table(path, model, batch)


def _price(table: LatencyTable, view: AttentionBlock, part: Part) -> Price:
    curve = table.curves.get(part.kind(view) or "")
    return (lambda kept: 0.0) if curve is None else read_off(curve)


def _share(price: Price, share: float) -> Price:
    return lambda kept: share * price(kept)


def _cached_table(path: Path, model: nn.Module) -> LatencyTable | None:
    kinds = {b.kind for view in attention_blocks(model) for b in branches_of(view) if b.units}
    table = read_table(path, kinds)
    if table is not None:
        log(f"latency table of attentions and MLPs: measured {table.measured} ({path})")
    return table


def _measure_table(path: Path, model: nn.Module, batch: int) -> LatencyTable:
    started, device = time.perf_counter(), device_words(device_of(model))
    log(f"timing attentions and MLPs of every width at batch {batch} on {device}")
    table = time_branches(model, batch)
    cached = f"saved in {path}" if write_table(table, path) else f"not saved: {path} cannot be written"
    log(f"timed in {time.perf_counter() - started:.1f} s; {cached}")
    return table


def _cache_path(model: nn.Module, batch: int) -> Path:
    """The cache file, named after a hash of everything that the times depend on."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    blocks = [[(b.kind, b.units) for b in branches_of(view)] for view in attention_blocks(model)]
    facts: dict[str, Any] = {
        "device": device_words(device_of(model)),
        "versions": {k: v for k, v in versions().items() if k != "python"},
        "dtype": f"{dtype}, products {torch.get_float32_matmul_precision()}",
        "batch": batch,
        "input_size": input_size_of(model),
        "blocks": blocks,
        "model": str(model),
        "params": count_params(model),  # counts dense attention's mixes, which the other facts leave out
    }
    return table_path(facts)
