"""Why a slim model's time falls less than its MACs: measured facts in words, and no guesses."""

from __future__ import annotations

from dataclasses import dataclass

from slimvit.measure.latency.profile import MATRIX, amdahl
from slimvit.measure.latency.ratios import Ratio
from slimvit.utils.allocator import AS_ENVIRONMENT

FOLLOWS = 0.8
"""Share of the promised gain from which on the time is said to follow the MACs."""

FEW = 4
"""Images that take hardly longer than one where starting the operators takes the time."""

HARDLY = 1.5
"""Times as long as one image: what `hardly` means."""

MUCH = 0.03
"""Share of the time that the system takes from which on it is worth a word."""

NEAR = 0.03
"""Two speed-ups this close (relative) are alike."""


@dataclass(frozen=True)
class Evidence:
    """What was measured of one slim model beside its original. What was not is None."""

    promised: float
    """Speed-up by MACs; times as many MACs has the original."""
    params: float
    """Times as many parameters has the original."""
    batch: int
    """That fills the machine."""
    latency: Ratio
    """Speed-up at one image."""
    throughput: Ratio
    """Speed-up at ``batch``."""
    few_over_one: float | None = None
    """Time of the original for :data:`FEW` images over that for one."""
    shares: dict[str, float] | None = None
    """Share of the original's time (0-1) by kind of operator, at ``batch``."""
    system: float | None = None
    """Share of the original's time (0-1) that the system takes to hand out memory, at ``batch``, on a CPU."""
    widths: tuple[int, ...] = ()
    """attn_dim of the slim model's blocks."""
    original_widths: tuple[int, ...] = ()


def remark(found: Evidence) -> str | None:
    """One line that says where the time does not follow the MACs, and what was measured that bears on it; None where
    it follows."""
    said = [_behind(found, found.latency, 1), _behind(found, found.throughput, found.batch)]
    if found.batch == 1:
        said = said[1:]
    if not any(said):
        return None
    facts = [_few(found), _params(found)] if _behind(found, found.latency, 1) else []
    facts += [_shares(found), _system(found)] if _behind(found, found.throughput, found.batch) else []
    return "; ".join(clause for clause in (*said, *facts, _sizes(found)) if clause)


def follows(speedup: Ratio, promised: float) -> bool:
    """Whether at least :data:`FOLLOWS` of the promised gain was reached."""
    return promised <= 1 or speedup.of_the_gain(promised).middle >= FOLLOWS


def _behind(found: Evidence, speedup: Ratio, batch: int) -> str | None:
    """That the model is slower, or gained less than promised, at this batch."""
    at = f"at batch {batch}"
    if speedup.high < 1:
        return f"{at} it is slower than the original: {speedup} times its speed"
    if found.promised <= 1 or follows(speedup, found.promised):
        return None
    reached = speedup.of_the_gain(found.promised).middle
    return f"{at} {speedup} times as fast where the MACs promise {found.promised:.2f}: {reached:.0%} of the gain"


def _few(found: Evidence) -> str | None:
    if found.few_over_one is None or found.few_over_one >= HARDLY:
        return None
    return (
        f"the original takes {found.few_over_one:.2f} times as long for {FEW} images as for 1, so at batch 1 most of "
        "its time does not depend on the arithmetic"
    )


def _params(found: Evidence) -> str | None:
    """Where the weights are what is waited for, the time goes with their number."""
    near = abs(found.latency.middle / found.params - 1) <= NEAR
    if not near or abs(found.params / found.promised - 1) <= NEAR:
        return None
    return f"at batch 1 its speed-up is near the ratio of the parameters, {found.params:.2f}"


def _shares(found: Evidence) -> str | None:
    """What Amdahl's law allows."""
    if not found.shares:
        return None
    matrix = found.shares.get(MATRIX, 0.0)
    others = [f"{kind} {share:.0%}" for kind, share in found.shares.items() if kind != MATRIX and share >= 0.03]
    allowed = amdahl(matrix, found.promised)
    return (
        f"{MATRIX} take {matrix:.0%} of the original's time at batch {found.batch}"
        + (f" ({', '.join(others)})" if others else "")
        + f"; where only they shrink, and as the MACs do, {allowed:.2f} is what can be had"
    )


def _system(found: Evidence) -> str | None:
    if found.system is None or found.system < MUCH:
        return None
    return (
        f"the system takes {found.system:.0%} of the original's time at batch {found.batch} to hand out memory, which "
        f"no cut spares; {AS_ENVIRONMENT} keeps freed memory"
    )


def _sizes(found: Evidence) -> str | None:
    """Widths that matrix kernels do not divide evenly, where the original had fewer of them."""
    for multiple in (16, 64):  # the coarser remark only where the finer one says nothing
        odd = [w for w in found.widths if w % multiple]
        before = sum(w % multiple > 0 for w in found.original_widths)
        if len(odd) > before:
            told = ", ".join(map(str, sorted(set(odd))))
            return (
                f"the attn_dim of {len(odd)} of {len(found.widths)} blocks is no multiple of {multiple} ({told}), in "
                f"the original that of {before}"
            )
    return None
