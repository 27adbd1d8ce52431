"""The time that a plan promised for a batch, and what its finished model takes."""

from __future__ import annotations

from statistics import median

from slimvit.measure.flops.count import input_size_of
from slimvit.measure.latency.batch_size import OutOfMemory
from slimvit.measure.latency.interleave import InterleavedTimer
from slimvit.measure.latency.ratios import Ratio, median_ratio
from slimvit.measure.latency.timer import Times, by_round
from slimvit.models.modes import evaluating
from slimvit.models.registry import plan_of
from slimvit.prune.costs.latency import latency_costs, share_table
from slimvit.utils.progress import log
from slimvit.workflows.state import RunState

ORIGINAL, FINAL = "original", "final"
ROUNDS = 30
MISSED = 0.1
"""Share by which a measured ratio may differ from the promised one without a word."""


def check_latency(state: RunState) -> None:
    """Time the finished model beside its original and put both into the report, with a note."""
    section = state.recipe.prune
    if section.target_latency is None:
        return
    share_table(state.original, section.latency_batch, state.engine)
    costs = latency_costs(state.original, section.latency_batch)
    whole, promised = costs.total(plan_of(state.original)), costs.total(plan_of(state.model))
    times = state.engine.agreed(_times(state) if state.engine.is_main else None)
    told = f"promised {promised:.3g} ms ({promised / whole:.2f} of the original's), "
    if times is None:
        told += "not measured: the device has no room left for it"
    else:
        before, after = by_round(times[ORIGINAL]), by_round(times[FINAL])
        _record(state, 0, before)
        _record(state, -1, after)
        told += measured_words(promised / whole, 1000 * median(after), median_ratio(after, before))
    if state.recipe.dense.mix is not None:
        told += "; the promise leaves out dense attention, which came after the cut"
    state.notes.append(f"target-latency {section.target_latency:g} at batch {section.latency_batch}: {told}")
    log(state.notes[-1])


def _record(state: RunState, place: int, seconds: list[float]) -> None:
    state.stages[place] = state.stages[place].model_copy(update={"latency_ms": 1000 * median(seconds)})


def measured_words(promised: float, milliseconds: float, measured: Ratio) -> str:
    """What was measured, and whether it is what was promised; ``promised`` and ``measured``: shares of the original's
    time."""
    interval = f"95 % interval {measured.low:.2f}-{measured.high:.2f}"
    told = f"measured {milliseconds:.3g} ms ({measured.middle:.2f}, {interval})"
    off = measured.middle / promised - 1
    if abs(off) <= MISSED:
        return told
    return f"{told}; the model is {abs(off):.0%} {'slower' if off > 0 else 'faster'} than promised"


def _times(state: RunState) -> Times | None:
    """None where the device has no room, which must not cost a run its result."""
    models = {ORIGINAL: state.original, FINAL: state.model}
    with evaluating(state.original), evaluating(state.model):
        contest = InterleavedTimer(models, {name: input_size_of(model) for name, model in models.items()})
        try:
            return contest.times(state.recipe.prune.latency_batch, ROUNDS)
        except OutOfMemory:
            return None
