"""Measure the latency of the finished model and compare it with the estimate of its plan."""

from __future__ import annotations

from statistics import median

from torch import nn

from slimvit.measure.flops.count import input_size_of
from slimvit.measure.latency.batch_size import OutOfMemory
from slimvit.measure.latency.interleave import InterleavedTimer
from slimvit.measure.latency.timer import Ratio, Times, by_round, median_ratio
from slimvit.models.insert_dense import dense_mix
from slimvit.models.modes import evaluating
from slimvit.models.registry import plan_of
from slimvit.prune.costs.base import Costs
from slimvit.prune.costs.budget import Checked
from slimvit.utils.distributed import Engine

ORIGINAL, FINAL = "original", "final"
ROUNDS = 30
MISSED = 0.1
"""Largest relative difference from the estimate that the note leaves out."""


def check_latency(
    original: nn.Module, final: nn.Module, costs: Costs, target: str, batch: int, engine: Engine
) -> Checked:
    """Time the final model beside its original.

    Args:
        original: The model before the cut.
        final: The final model of the run.
        costs: Costs of the original's parts, in milliseconds.
        target: The option and its value, for the note.
        batch: Images per batch.
        engine: The engine of the run; its main process measures.

    Returns:
        A note, and the times of both models in milliseconds.
    """
    whole, promised = costs.total(plan_of(original)), costs.total(plan_of(final))
    times = engine.broadcast(_times(original, final, batch) if engine.is_main else None)
    note = f"promised {promised:.3g} ms ({promised / whole:.2f} of the original's), "
    figures: dict[str, tuple[float, float]] = {}
    if times is None:
        note += "not measured: the device has not enough memory"
    else:
        before, after = by_round(times[ORIGINAL]), by_round(times[FINAL])
        figures["latency_ms"] = (1000 * median(before), 1000 * median(after))
        note += measured_words(promised / whole, 1000 * median(after), median_ratio(after, before))
    if dense_mix(final) is not None and dense_mix(original) is None:
        note += "; the estimate leaves out dense attention, which was inserted after the cut"
    return Checked(f"{target} at batch {batch}: {note}", figures)


def measured_words(promised: float, milliseconds: float, measured: Ratio) -> str:
    """Return the measured time in words, and its difference from the estimate where it is large.

    Args:
        promised: Estimated share of the original's time.
        milliseconds: Measured time of the final model.
        measured: Measured share of the original's time.
    """
    interval = f"95 % interval {measured.low:.2f}-{measured.high:.2f}"
    words = f"measured {milliseconds:.3g} ms ({measured.middle:.2f}, {interval})"
    off = measured.middle / promised - 1
    if abs(off) <= MISSED:
        return words
    return f"{words}; the model is {abs(off):.0%} {'slower' if off > 0 else 'faster'} than promised"


def _times(original: nn.Module, final: nn.Module, batch: int) -> Times | None:
    """Times of both models; None where the device lacks the memory, which must not fail the run."""
    models = {ORIGINAL: original, FINAL: final}
    with evaluating(original), evaluating(final):
        timer = InterleavedTimer(models, {name: input_size_of(model) for name, model in models.items()})
        try:
            return timer.times(batch, ROUNDS)
        except OutOfMemory:
            return None
