"""What attentions and MLPs of every width cost in milliseconds on this device, measured once and kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimvit.measure.flops.count import input_size_of
from slimvit.measure.flops.parts import count_params
from slimvit.measure.latency.curves import read_off
from slimvit.measure.latency.machine import device_words, versions
from slimvit.measure.latency.table import LatencyTable, place_of, read_table, write_table
from slimvit.models.base import AttentionBlock
from slimvit.models.modes import device_of
from slimvit.models.registry import attention_blocks
from slimvit.prune.costs.base import PRICED_PARTS, Costs, Price
from slimvit.prune.costs.latency_blocks import branch_kind, branch_width
from slimvit.prune.costs.latency_profile import time_branches
from slimvit.utils.distributed import Engine
from slimvit.utils.progress import log

_known: dict[Path, LatencyTable] = {}
"""Tables that this process has measured or read."""


def latency_costs(model: nn.Module, batch: int) -> Costs:
    """What the model's parts cost on its device in its dtype, milliseconds for ``batch`` images.

    Prices hold for whatever is cut out of the model too. Raises :class:`PlanError` where they cannot be measured.
    """
    table = latency_table(model, batch)
    heads, mlp = ([_price(table, view, part) for view in attention_blocks(model)] for part in PRICED_PARTS)
    return Costs("ms", table.rest, tuple(heads), tuple(mlp))


def latency_table(model: nn.Module, batch: int) -> LatencyTable:
    """Measured by whoever needs it first on a machine."""
    path = _place(model, batch)
    if path not in _known:
        _known[path] = _stored(path, model) or _measured_and_kept(path, model, batch)
    return _known[path]


def share_table(model: nn.Module, batch: int, engine: Engine) -> None:
    """Let the main process measure, and every other one know what it found: their plans must be the same."""
    path = _place(model, batch)
    if path not in _known:
        table = engine.agreed(latency_table(model, batch) if engine.is_main else None)
        assert table is not None
        _known[path] = table


def _price(table: LatencyTable, view: AttentionBlock, part: str) -> Price:
    curve = table.curves.get(branch_kind(view, part))
    return (lambda kept: 0.0) if curve is None else read_off(curve)


def _stored(path: Path, model: nn.Module) -> LatencyTable | None:
    views = attention_blocks(model)
    table = read_table(path, {branch_kind(v, part) for v in views for part in PRICED_PARTS if branch_width(v, part)})
    if table is not None:
        log(f"times of attentions and MLPs: as measured {table.measured} ({path})")
    return table


def _measured_and_kept(path: Path, model: nn.Module, batch: int) -> LatencyTable:
    started, device = time.perf_counter(), device_words(device_of(model))
    log(f"timing attentions and MLPs of every width at batch {batch} on {device}")
    table = time_branches(model, batch)
    kept = f"kept in {path}" if write_table(table, path) else f"{path} cannot be written, so they are not kept"
    log(f"timed in {time.perf_counter() - started:.1f} s; {kept}")
    return table


def _place(model: nn.Module, batch: int) -> Path:
    """The file that belongs to all that the times depend on."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    blocks = [[(branch_kind(v, part), branch_width(v, part)) for part in PRICED_PARTS] for v in attention_blocks(model)]
    facts: dict[str, Any] = {
        "device": device_words(device_of(model)),
        "versions": {k: v for k, v in versions().items() if k != "python"},
        "dtype": f"{dtype}, products {torch.get_float32_matmul_precision()}",
        "batch": batch,
        "input_size": input_size_of(model),
        "blocks": blocks,
        "model": str(model),
        "params": count_params(model),  # its mixes are in no other fact
    }
    return place_of(facts)
