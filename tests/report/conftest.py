"""Runs that nobody ran: recipes, reports and timings written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slimvit.config.recipe import Recipe
from slimvit.report.compare.measurement import Measurement
from slimvit.report.record import Report, Stage
from slimvit.report.timing import Timing

Tree = dict[str, Any]
PARTS = {"patch_embed": 40, "qkv": 300, "attention": 100, "proj": 100, "mlp": 450, "norm": 10}


@pytest.fixture(scope="session")
def timing() -> Callable[..., Timing]:
    def make(latency: float, **given: Any) -> Timing:
        told = {"device": "a CPU", "precision": "fp32", "compiled": False, "rounds": 3, "latency_ms": latency}
        return Timing(
            **(told | {"latency_speedup": 10 / latency, "throughput": 5.0, "throughput_speedup": 2.0} | given)
        )

    return make


@pytest.fixture(scope="session")
def run() -> Callable[..., Measurement]:
    """A run that cut ``ratio`` of the heads, at the seed and top-1 given; ``**recipe`` are sections of its recipe.

    ``neurons``: before and after; None as in older reports.
    """

    def make(
        name: str, ratio: float = 0.5, top1: float | None = 70.0, seed: int = 0, *, original: float | None = 80.0,
        model: str = "tiny", parts: bool = True, recipe: Tree | None = None, report: Tree | None = None,
        final: Tree | None = None, neurons: tuple[int, int] | None = None, **given: Any,
    ) -> Measurement:  # fmt: skip
        cut = {k: int(v * (1 - ratio)) if k in ("qkv", "attention", "proj") else v for k, v in PARTS.items()}
        first = {"heads": 100, "params": 2000, "macs": sum(PARTS.values()), "top1": original, "top5": 95.0}
        last = {
            "heads": round(100 * (1 - ratio)),
            "params": 1500,
            "macs": sum(cut.values()),
            "top1": top1,
            "top5": 94.0,
        }
        if neurons is not None:
            first["neurons"], last["neurons"] = neurons
        stages = [
            Stage(stage="original", macs_by_part=PARTS if parts else None, agreement=100.0, feature_error=0.0, **first),
            Stage(
                stage="refit",
                macs_by_part=cut if parts else None,
                **({"agreement": 90.0, "feature_error": ratio, "seconds": 12.5} | last | (final or {})),
            ),
        ]
        tree = {"model": {"name": model}, "data": {"name": "digits"}, "prune": {"ratio": ratio}, "seed": seed}
        told = {"model": model, "data": "digits", "images": 360, "seed": seed, "stages": stages} | (report or {})
        settings: dict[str, Any] = {
            "epochs": 0,
            "input_size": (1, 16, 16),
            "recipe": Recipe.parse(tree | (recipe or {})),
        }
        folder = given.pop("folder", f"runs/{name}_s{seed}")
        base = {"folder": Path(folder), "shown": folder, "name": name, "model": model, "report": Report(**told)}
        return Measurement(**(base | settings | given))

    return make


@pytest.fixture(scope="session")
def many(run: Callable[..., Measurement], timing: Callable[..., Timing]) -> list[Measurement]:
    """Two criteria, four ratios, two seeds; trained and timed."""

    def all_() -> Iterator[Measurement]:
        for criterion, worse in (("residual", 1), ("taylor", 3)):
            for ratio in (0.2, 0.4, 0.6, 0.8):
                for seed in (0, 1):
                    top1 = 80 - 10 * ratio * worse + seed
                    history = tuple({"epoch": e, "top1": top1 - 2 + e} for e in (1, 2))
                    yield run(
                        f"criterion {criterion}, ratio {ratio}", ratio, top1, seed, sweep="sweep", epochs=2,
                        recipe={"prune": {"ratio": ratio, "criterion": criterion}},
                        timings=(timing(10 - 2 * ratio),), history=history,
                        folder=f"sweep/points/{criterion}-{ratio}-{seed}",
                    )  # fmt: skip

    return list(all_())
