"""The time that a plan promised for a batch, and what its finished model takes."""

from __future__ import annotations

from statistics import median

from slimvit.measure.flops.count import input_size_of
from slimvit.measure.latency.batch_size import OutOfMemory
from slimvit.measure.latency.interleave import Contest
from slimvit.measure.latency.ratios import Ratio, median_ratio
from slimvit.measure.latency.timer import Times, by_round
from slimvit.models.base import plan_of
from slimvit.models.modes import evaluating
from slimvit.prune.costs.latency import latency_costs, share_table
from slimvit.utils.progress import say
from slimvit.workflows.state import Run

ORIGINAL, FINAL = "original", "final"
ROUNDS = 30
MISSED = 0.1
"""Share by which a measured ratio may differ from the promised one without a word."""


def check_promise(now: Run) -> None:
    """Time the finished model beside its original and put both into the report, with a note."""
    section = now.recipe.prune
    if section.target_latency is None:
        return
    share_table(now.original, section.latency_batch, now.engine)
    costs = latency_costs(now.original, section.latency_batch)
    whole, promised = costs.total(plan_of(now.original)), costs.total(plan_of(now.model))
    times = now.engine.agreed(_times(now) if now.engine.is_main else None)
    told = f"promised {promised:.3g} ms ({promised / whole:.2f} of the original's), "
    if times is None:
        told += "not measured: the device has no room left for it"
    else:
        before, after = by_round(times[ORIGINAL]), by_round(times[FINAL])
        _record(now, 0, before)
        _record(now, -1, after)
        told += measured_words(promised / whole, 1000 * median(after), median_ratio(after, before))
    if now.recipe.dense.mix is not None:
        told += "; the promise leaves out dense attention, which came after the cut"
    now.notes.append(f"target-latency {section.target_latency:g} at batch {section.latency_batch}: {told}")
    say(now.notes[-1])


def _record(now: Run, place: int, seconds: list[float]) -> None:
    now.stages[place] = now.stages[place].model_copy(update={"latency_ms": 1000 * median(seconds)})


def measured_words(promised: float, milliseconds: float, measured: Ratio) -> str:
    """What was measured, and whether it is what was promised; ``promised`` and ``measured``: shares of the original's
    time."""
    interval = f"95 % interval {measured.low:.2f}-{measured.high:.2f}"
    told = f"measured {milliseconds:.3g} ms ({measured.middle:.2f}, {interval})"
    off = measured.middle / promised - 1
    if abs(off) <= MISSED:
        return told
    return f"{told}; the model is {abs(off):.0%} {'slower' if off > 0 else 'faster'} than promised"


def _times(now: Run) -> Times | None:
    """None where the device has no room, which must not cost a run its result."""
    models = {ORIGINAL: now.original, FINAL: now.model}
    with evaluating(now.original), evaluating(now.model):
        contest = Contest(models, {name: input_size_of(model) for name, model in models.items()})
        try:
            return contest.times(now.recipe.prune.latency_batch, ROUNDS)
        except OutOfMemory:
            return None
