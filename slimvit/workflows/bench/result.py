"""The figures of a timed model: latency, throughput, and speed-up against its original."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
from torch import Tensor

from slimvit.measure.latency.explain import Evidence, follows, remark
from slimvit.measure.latency.profile import system_share, time_shares
from slimvit.measure.latency.timer import Ratio, images_for, median_ratio
from slimvit.workflows.bench.models import BenchModel


@dataclass(frozen=True)
class BenchTimes:
    """The times of one model in one setting, in seconds per forward pass."""

    bench_model: BenchModel
    one: list[float]
    """One image, one time per round."""
    passes: list[list[float]]
    """One image, every pass of every round."""
    full: list[float]
    """`batch` images, one time per round."""
    batch: int
    peak: int | None
    """Peak memory in bytes; None where not measured."""
    few_over_one: float | None
    """Time of 4 images over the time of one; None where not measured."""
    compiled: bool

    @cached_property
    def shares(self) -> dict[str, float] | None:
        """Share of the time of a full batch by kind of operator; None for a compiled model."""
        if self.compiled:
            return None
        return time_shares(self.bench_model.model, self._images())

    @cached_property
    def system(self) -> float | None:
        """Share of the time of a full batch that the operating system takes; None on a GPU."""
        images = self._images()
        return system_share(self.bench_model.model, images) if images.device.type == "cpu" else None

    def _images(self) -> Tensor:
        return images_for(self.bench_model.model, self.bench_model.input_size, self.batch)

    def figures(self) -> dict[str, Any]:
        """Fields of a `Timing` that need no original."""
        return {
            "latency_ms": 1000 * median(self.one),
            "latency_p95_ms": 1000 * float(np.quantile(np.concatenate(self.passes), 0.95)),
            "throughput": self.batch / median(self.full),
            "peak_memory_gib": None if self.peak is None else self.peak / 2**30,
            "input_size": list(self.bench_model.input_size),
        }


def speedup_fields(slim: BenchTimes, original: BenchTimes) -> dict[str, Any]:
    """Fields of a `Timing` that compare a slim model with its original in the same rounds."""
    latency, throughput = median_ratio(original.one, slim.one), median_ratio(original.full, slim.full)
    by_macs = _ratio(original.bench_model.macs, slim.bench_model.macs)
    return {
        "latency_speedup": latency.middle,
        "latency_interval": [latency.low, latency.high],
        "throughput_speedup": throughput.middle,
        "throughput_interval": [throughput.low, throughput.high],
        "macs_speedup": by_macs,
        "remark": remark(_evidence(slim, original, latency, throughput, by_macs)),
    }


def _evidence(slim: BenchTimes, original: BenchTimes, latency: Ratio, throughput: Ratio, by_macs: float) -> Evidence:
    return Evidence(
        promised=by_macs,
        params=_ratio(original.bench_model.params, slim.bench_model.params),
        batch=slim.batch,
        latency=latency,
        throughput=throughput,
        few_over_one=original.few_over_one,
        shares=None if follows(throughput, by_macs) else original.shares,
        system=None if follows(throughput, by_macs) else original.system,
        widths=slim.bench_model.widths,
        original_widths=original.bench_model.widths,
    )


def _ratio(above: int | None, below: int | None) -> float:
    assert above is not None and below is not None  # counted for every slim model and its original
    return above / below
