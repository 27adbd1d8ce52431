"""Explains in words, from measurements, why the time of a pruned model falls less than its MACs."""

from __future__ import annotations

from dataclasses import dataclass

from slimvit.measure.latency.profile import MATRIX, amdahl
from slimvit.measure.latency.timer import Ratio
from slimvit.utils.allocator import AS_ENVIRONMENT

FOLLOWS = 0.8
"""Smallest share of the promised gain at which the time follows the MACs."""

FEW = 4
"""Images that take hardly longer than one image if launching the operators dominates."""

HARDLY = 1.5
"""Largest time of `FEW` images over that of one image that counts as hardly longer."""

MUCH = 0.03
"""Smallest share of the system's time that is mentioned."""

NEAR = 0.03
"""Relative difference up to which two speed-ups are alike."""


@dataclass(frozen=True)
class Evidence:
    """Measurements of a pruned model and its original; None was not measured."""

    promised: float
    """The speed-up that the MACs promise: the original's MACs over the pruned model's."""
    params: float
    """The original's parameters over the pruned model's."""
    batch: int
    """The batch size that fills the machine."""
    latency: Ratio
    """Speed-up at one image."""
    throughput: Ratio
    """Speed-up at `batch` images."""
    few_over_one: float | None = None
    """Time of the original for `FEW` images over that for one."""
    shares: dict[str, float] | None = None
    """Share of the original's time (0-1) by kind of operator, at `batch` images."""
    system: float | None = None
    """Share of the original's time (0-1) that the system spends on memory allocation, at `batch` images, on a CPU."""
    widths: tuple[int, ...] = ()
    """attn_dim of the slim model's blocks."""
    original_widths: tuple[int, ...] = ()


def remark(evidence: Evidence) -> str | None:
    """Say in one line where the time does not follow the MACs, and which measurements explain it.

    Returns:
        The line, or None where the time follows.
    """
    at_one = _behind(evidence, evidence.latency, 1)
    at_batch = _behind(evidence, evidence.throughput, evidence.batch)
    gaps = [at_batch] if evidence.batch == 1 else [at_one, at_batch]
    if not any(gaps):
        return None
    reasons = [_few(evidence), _params(evidence)] if at_one else []
    reasons += [_shares(evidence), _system(evidence)] if at_batch else []
    return "; ".join(clause for clause in (*gaps, *reasons, _sizes(evidence)) if clause)


def follows(speedup: Ratio, promised: float) -> bool:
    """Return whether at least the share `FOLLOWS` of the promised gain was reached."""
    return promised <= 1 or speedup.of_the_gain(promised).middle >= FOLLOWS


def _behind(evidence: Evidence, speedup: Ratio, batch: int) -> str | None:
    """A clause where the model is slower, or gained less than promised, at this batch size."""
    at = f"at batch {batch}"
    if speedup.high < 1:
        return f"{at} it is slower than the original: {speedup} times its speed"
    if evidence.promised <= 1 or follows(speedup, evidence.promised):
        return None
    reached = speedup.of_the_gain(evidence.promised).middle
    return f"{at} {speedup} times as fast where the MACs promise {evidence.promised:.2f}: {reached:.0%} of the gain"


def _few(evidence: Evidence) -> str | None:
    if evidence.few_over_one is None or evidence.few_over_one >= HARDLY:
        return None
    return (
        f"the original takes {evidence.few_over_one:.2f} times as long for {FEW} images as for 1, so at batch 1 most "
        "of its time does not depend on the arithmetic"
    )


def _params(evidence: Evidence) -> str | None:
    """Where reading the weights takes the time, it goes with the number of parameters."""
    near = abs(evidence.latency.middle / evidence.params - 1) <= NEAR
    if not near or abs(evidence.params / evidence.promised - 1) <= NEAR:
        return None
    return f"at batch 1 its speed-up is near the ratio of the parameters, {evidence.params:.2f}"


def _shares(evidence: Evidence) -> str | None:
    """The speed-up that Amdahl's law allows."""
    if not evidence.shares:
        return None
    matrix = evidence.shares.get(MATRIX, 0.0)
    others = [f"{kind} {share:.0%}" for kind, share in evidence.shares.items() if kind != MATRIX and share >= 0.03]
    allowed = amdahl(matrix, evidence.promised)
    return (
        f"{MATRIX} take {matrix:.0%} of the original's time at batch {evidence.batch}"
        + (f" ({', '.join(others)})" if others else "")
        + f"; if only they shrink, and as much as the MACs, the speed-up is at most {allowed:.2f}"
    )


def _system(evidence: Evidence) -> str | None:
    if evidence.system is None or evidence.system < MUCH:
        return None
    return (
        f"the system spends {evidence.system:.0%} of the original's time at batch {evidence.batch} on memory "
        f"allocation, which no cut reduces; {AS_ENVIRONMENT} keeps freed memory"
    )


def _sizes(evidence: Evidence) -> str | None:
    """Widths that matrix kernels do not divide evenly, where the original had fewer such widths."""
    for multiple in (16, 64):  # multiples of 64 only where all are multiples of 16
        odd = [w for w in evidence.widths if w % multiple]
        before = sum(w % multiple > 0 for w in evidence.original_widths)
        if len(odd) > before:
            shown = ", ".join(map(str, sorted(set(odd))))
            return (
                f"the attn_dim of {len(odd)} of {len(evidence.widths)} blocks is no multiple of {multiple} ({shown}), "
                f"in the original that of {before}"
            )
    return None
