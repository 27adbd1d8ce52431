"""Latency check: compares the measured latency of the finished model with the estimate of its plan."""

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
"""Relative difference from the estimate above which the note mentions it."""


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
    total, estimate = costs.total(plan_of(original)), costs.total(plan_of(final))
    times = engine.broadcast(_times(original, final, batch) if engine.is_main else None)
    note = f"estimated {estimate:.3g} ms ({estimate / total:.2f} of the original's), "
    figures: dict[str, tuple[float, float]] = {}
    if times is None:
        note += "not measured: the device has not enough memory"
    else:
        before, after = by_round(times[ORIGINAL]), by_round(times[FINAL])
        figures["latency_ms"] = (1000 * median(before), 1000 * median(after))
        note += measured_words(estimate / total, 1000 * median(after), median_ratio(after, before))
    if dense_mix(final) is not None and dense_mix(original) is None:
        note += "; the estimate leaves out dense attention, which was inserted after the cut"
    return Checked(f"{target} at batch {batch}: {note}", figures)


def measured_words(estimate: float, milliseconds: float, measured: Ratio) -> str:
    """Return the measured time in words, with its difference from the estimate if that is large.

    Args:
        estimate: Estimated share of the original's time.
        milliseconds: Measured time of the final model.
        measured: Measured share of the original's time.
    """
    interval = f"95 % interval {measured.low:.2f}-{measured.high:.2f}"
    words = f"measured {milliseconds:.3g} ms ({measured.middle:.2f}, {interval})"
    error = measured.middle / estimate - 1
    if abs(error) <= MISSED:
        return words
    return f"{words}; the model is {abs(error):.0%} {'slower' if error > 0 else 'faster'} than estimated"


def _times(original: nn.Module, final: nn.Module, batch: int) -> Times | None:
    """Times of both models; None if the device has not enough memory, which must not fail the run."""
    models = {ORIGINAL: original, FINAL: final}
    with evaluating(original), evaluating(final):
        timer = InterleavedTimer(models, {name: input_size_of(model) for name, model in models.items()})
        try:
            return timer.times(batch, ROUNDS)
        except OutOfMemory:
            return None
