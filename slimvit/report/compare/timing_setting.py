"""Under which setting of which machine the points are compared in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from slimvit.report.compare.measurement import Measurement, Setting
from slimvit.report.timing import setting_of


def common_setting(measurements: Sequence[Measurement]) -> Setting | None:
    """The setting that most runs were timed under; the first in the alphabet among several. None without timings."""
    counts = Counter(s for m in measurements for s in {setting_of(t) for t in m.timings})
    return min(counts, key=lambda s: (-counts[s], s), default=None)


def setting_said(setting: Setting) -> str:
    device, precision, compiled = setting
    return ", ".join([device, precision] + ["compiled"] * compiled)


def untimed(measurements: Sequence[Measurement], setting: Setting | None) -> int:
    """How many runs have no latency under ``setting``."""
    return sum(m.figures(setting)["latency_ms"] is None for m in measurements)


def notes_on_speed(measurements: Sequence[Measurement], setting: Setting | None) -> list[str]:
    """Which times the table leaves out."""
    others = sorted({setting_of(t) for m in measurements for t in m.timings} - {setting})
    return [f"times under other settings are left out: {'; '.join(map(setting_said, others))}"] * bool(others)
