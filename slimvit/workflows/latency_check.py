"""Planned against measured latency of a finished model."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from slimvit.measure.flops.count import input_size_of
from slimvit.measure.latency.batch_size import OutOfMemory
from slimvit.measure.latency.interleave import InterleavedTimer
from slimvit.measure.latency.ratios import Ratio, median_ratio
from slimvit.measure.latency.timer import Times, by_round
from slimvit.models.base import TimmModule
from slimvit.models.modes import evaluating
from slimvit.models.registry import plan_of
from slimvit.prune.costs.latency import latency_costs, share_table
from slimvit.workflows.state import RunContext

ORIGINAL, FINAL = "original", "final"
ROUNDS = 30
MISSED = 0.1
"""Relative difference of measured and planned latency above which the note says so."""


@dataclass(frozen=True)
class LatencyCheck:
    """The measured latency of a finished model beside its original's.

    Attributes:
        note: Planned and measured milliseconds, for the report.
        milliseconds: Of original and finished model, per batch; None where it was not measured.
    """

    note: str
    milliseconds: tuple[float, float] | None


def check_latency(context: RunContext, original: TimmModule, model: TimmModule) -> LatencyCheck | None:
    """Time the finished model beside its original; None where the budget is not in milliseconds."""
    section, engine = context.recipe.prune, context.engine
    if section.target_latency is None:
        return None
    share_table(original, section.latency_batch, engine)
    costs = latency_costs(original, section.latency_batch)
    whole, promised = costs.total(plan_of(original)), costs.total(plan_of(model))
    times = engine.agreed(_times(original, model, section.latency_batch) if engine.is_main else None)
    text, milliseconds = f"promised {promised:.3g} ms ({promised / whole:.2f} of the original's), ", None
    if times is None:
        text += "not measured: the device has no room left for it"
    else:
        before, after = by_round(times[ORIGINAL]), by_round(times[FINAL])
        milliseconds = 1000 * median(before), 1000 * median(after)
        text += measured_words(promised / whole, milliseconds[1], median_ratio(after, before))
    if context.recipe.dense.mix is not None:
        text += "; the promise leaves out dense attention, which came after the cut"
    note = f"target-latency {section.target_latency:g} at batch {section.latency_batch}: {text}"
    return LatencyCheck(note, milliseconds)


def measured_words(promised: float, milliseconds: float, measured: Ratio) -> str:
    """The measured latency in words, and by how much it misses the planned one.

    Args:
        promised: Planned latency as a share of the original's.
        milliseconds: Measured latency.
        measured: Measured latency as a share of the original's.
    """
    interval = f"95 % interval {measured.low:.2f}-{measured.high:.2f}"
    text = f"measured {milliseconds:.3g} ms ({measured.middle:.2f}, {interval})"
    off = measured.middle / promised - 1
    if abs(off) <= MISSED:
        return text
    return f"{text}; the model is {abs(off):.0%} {'slower' if off > 0 else 'faster'} than promised"


def _times(original: TimmModule, model: TimmModule, batch: int) -> Times | None:
    """Seconds of both models; None where the device has no room, which must not cost a run its result."""
    models = {ORIGINAL: original, FINAL: model}
    with evaluating(original), evaluating(model):
        timer = InterleavedTimer(models, {name: input_size_of(model) for name, model in models.items()})
        try:
            return timer.times(batch, ROUNDS)
        except OutOfMemory:
            return None
