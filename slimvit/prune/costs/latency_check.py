"""The time that a plan promised for a batch, and what its finished model takes."""

from __future__ import annotations

from statistics import median

from torch import nn

from slimvit.measure.flops.count import input_size_of
from slimvit.measure.latency.batch_size import OutOfMemory
from slimvit.measure.latency.interleave import InterleavedTimer
from slimvit.measure.latency.ratios import Ratio, median_ratio
from slimvit.measure.latency.timer import Times, by_round
from slimvit.models.insert_dense import dense_mix
from slimvit.models.modes import evaluating
from slimvit.models.registry import plan_of
from slimvit.prune.costs.base import Costs
from slimvit.prune.costs.budget import Checked
from slimvit.utils.distributed import Engine

ORIGINAL, FINAL = "original", "final"
ROUNDS = 30
MISSED = 0.1
"""Share by which a measured ratio may differ from the promised one without a word."""


def check_latency(
    original: nn.Module, final: nn.Module, costs: Costs, target: str, batch: int, engine: Engine
) -> Checked:
    """Time the finished model beside its original: a note, and both times in milliseconds.

    Args:
        original: The model before the cut.
        final: The model that the run ends with.
        costs: What the original's parts cost, in milliseconds.
        target: The option and its value.
        batch: Images at a time.
        engine: Of the processes that run this; the main one measures.
    """
    whole, promised = costs.total(plan_of(original)), costs.total(plan_of(final))
    times = engine.agreed(_times(original, final, batch) if engine.is_main else None)
    told = f"promised {promised:.3g} ms ({promised / whole:.2f} of the original's), "
    figures: dict[str, tuple[float, float]] = {}
    if times is None:
        told += "not measured: the device has no room left for it"
    else:
        before, after = by_round(times[ORIGINAL]), by_round(times[FINAL])
        figures["latency_ms"] = (1000 * median(before), 1000 * median(after))
        told += measured_words(promised / whole, 1000 * median(after), median_ratio(after, before))
    if dense_mix(final) is not None and dense_mix(original) is None:
        told += "; the promise leaves out dense attention, which came after the cut"
    return Checked(f"{target} at batch {batch}: {told}", figures)


def measured_words(promised: float, milliseconds: float, measured: Ratio) -> str:
    """What was measured, and whether it is what was promised; `promised` and `measured`: shares of the original's
    time."""
    interval = f"95 % interval {measured.low:.2f}-{measured.high:.2f}"
    told = f"measured {milliseconds:.3g} ms ({measured.middle:.2f}, {interval})"
    off = measured.middle / promised - 1
    if abs(off) <= MISSED:
        return told
    return f"{told}; the model is {abs(off):.0%} {'slower' if off > 0 else 'faster'} than promised"


def _times(original: nn.Module, final: nn.Module, batch: int) -> Times | None:
    """None where the device has no room, which must not cost a run its result."""
    models = {ORIGINAL: original, FINAL: final}
    with evaluating(original), evaluating(final):
        timer = InterleavedTimer(models, {name: input_size_of(model) for name, model in models.items()})
        try:
            return timer.times(batch, ROUNDS)
        except OutOfMemory:
            return None
