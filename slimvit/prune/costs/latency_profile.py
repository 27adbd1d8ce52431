"""Latency profiling: times a model, the model without its branches, and blocks of several widths, interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn

from slimvit.measure.flops.count import input_size_of
from slimvit.measure.latency.interleave import is_out_of_memory
from slimvit.measure.latency.machine import device_words
from slimvit.measure.latency.table import LatencyTable, curve_of, read_off
from slimvit.measure.latency.timer import by_round, images_for, interleaved, timed, warm_up
from slimvit.models.base import AttentionBlock
from slimvit.models.insert_dense import dense_mix, remove_dense_attention
from slimvit.models.modes import device_of, evaluating
from slimvit.models.parts.registry import PARTS
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.prune.costs.latency_blocks import WidthSweep, branches_of, width_sweeps
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import PlanError
from slimvit.utils.progress import track

ROUNDS = (5, 20)
"""Fewest and most rounds. Between these limits the rounds take `SECONDS`."""
SECONDS = 120.0
TURN = 0.02
"""Shortest turn of a branch in a round, in seconds.

Other work on the machine slows turns of equal length alike, so the curves keep their shape."""
FULL, PLAIN, BARE = "full", "plain", "bare"
"""The model, the model without dense attention, and the model without dense attention and branches."""


def time_branches(model: nn.Module, batch: int) -> LatencyTable:
    """Time a model, the model without its branches, and every kind of branch in the same rounds.

    Args:
        model: The model, on the device to measure.
        batch: Images per batch.

    Raises:
        PlanError: The device has not enough memory, or the times are too short to measure.
    """
    plain = model if dense_mix(model) is None else remove_dense_attention(model)
    views, device = attention_blocks(plain), device_of(model)
    steps = width_sweeps(views)
    with _in_memory(batch, device), evaluating(model), evaluating(plain):
        models = {FULL: model, BARE: _bare(plain)} | ({} if plain is model else {PLAIN: plain})
        times = _times(models, steps, batch)
    table = _table(times, steps, views)
    if table is None:
        raise PlanError(
            f"target-latency: heads and MLPs take too little time to be measured on {device_words(device)} at batch "
            f"{batch}; give --target-macs or a larger --latency-batch"
        )
    return table


def _bare(plain: nn.Module) -> nn.Module:
    plan = plan_of(plain)
    gone = [name for name in plan.parts if PARTS[name].branch is not None]
    return prune_model(plain, plan.keeping_parts({name: [()] * len(plan.blocks) for name in gone}))


def _times(models: Mapping[str, nn.Module], steps: Sequence[WidthSweep], batch: int) -> dict[str, float]:
    """Milliseconds per pass of the models and of the blocks of every sweep, by name."""
    plain = models.get(PLAIN, models[FULL])
    images = images_for(plain, input_size_of(plain), batch)
    streams = _streams(plain, [s.view for s in steps], images)
    calls: dict[str, Callable[[], float]] = {name: partial(timed, m, images) for name, m in models.items()}
    for step in steps:
        stream, more = streams[step.view.name]
        calls |= {_named(step, w): partial(timed, step.block(w), stream, **more) for w in step.widths}
    took = {name: max(1e-6, warm_up(call)) for name, call in calls.items()}
    turns = {name: partial(_turn, call, ceil(TURN / took[name])) for name, call in calls.items()}
    count = _rounds(sum(max(TURN, seconds) for seconds in took.values()))
    times = interleaved(turns, track(range(count), "timing attentions and MLPs", unit="rounds"))
    return {name: 1000 * median(by_round(rounds)) for name, rounds in times.items()}


def _rounds(seconds: float) -> int:
    """Number of rounds, from the seconds of one."""
    fewest, most = ROUNDS
    return max(fewest, min(most, int(SECONDS / seconds)))


def _turn(call: Callable[[], float], passes: int) -> float:
    """Mean seconds per pass."""
    return mean(call() for _ in range(passes))


def _streams(
    plain: nn.Module, views: Sequence[AttentionBlock], images: Tensor
) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """Inputs of the blocks by name: the stream [B, ..., C] and the keyword arguments."""
    inputs: dict[str, tuple[Tensor, dict[str, Any]]] = {}
    hooks = [
        view.block.register_forward_pre_hook(
            lambda _, args, kwargs, name=view.name: inputs.update({name: (args[0], kwargs)}), with_kwargs=True
        )
        for view in views
    ]
    try:
        plain(images)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def _named(step: WidthSweep, width: int) -> str:
    return f"{step.kind} @ {width}"


def _table(
    times: Mapping[str, float], steps: Sequence[WidthSweep], views: Sequence[AttentionBlock]
) -> LatencyTable | None:
    """The latency table, whose rest and curves add up to the full model; None if the branches took no time.

    Branches timed alone differ from branches in the model, which find other caches and a busy device. The curves are
    therefore scaled to add up to the time of all branches in the model. The mixing of dense attention is in the rest.
    """
    curves = {s.kind: curve_of(s.widths, [times[_named(s, w)] for w in s.widths]) for s in steps}
    sizes = [(branch.kind, branch.units) for view in views for branch in branches_of(view)]
    alone = sum(read_off(curves[kind])(width) for kind, width in sizes if width)
    together = times.get(PLAIN, times[FULL]) - times[BARE]
    if alone <= 0 or together <= 0:
        return None
    scaled = {kind: [(w, t * together / alone) for w, t in curve] for kind, curve in curves.items()}
    rest = times[FULL] - together
    return LatencyTable(measured=time.strftime("%Y-%m-%d %H:%M"), full=times[FULL], rest=rest, curves=scaled)


@contextmanager
def _in_memory(batch: int, device: torch.device) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise PlanError(
            f"latency-batch {batch}: does not fit into the memory of {device_words(device)}; give a smaller one"
        ) from None
