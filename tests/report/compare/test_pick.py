"""--pick: what it takes, what it refuses, and which point it names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from slimvit.report.compare.measurement import Measurement
from slimvit.report.compare.pick import KEEPS, PickError, costs, parse_pick, pick
from slimvit.report.compare.rows import rows_of
from slimvit.utils.errors import StoreError

Make = Callable[..., Measurement]


def picked(text: str, runs: list[Measurement], **how: Any) -> str:
    return pick(parse_pick(text), rows_of(runs, ("a CPU", "fp32", False))).row.name


@pytest.mark.parametrize(
    "text",
    ["", "top1", "top1 > -1", "top1 >= x", "top1 >= nan", "loss >= 1", "top1 <= -1", "macs >= 0.5", "macs <= 60",
     "macs <= 0", "macs <= -0.5", "macs <= 0.5 and top1 >= -1"],
)  # fmt: skip
def test_a_bad_expression_names_what_is_allowed(text: str) -> None:
    with pytest.raises(PickError) as caught:
        parse_pick(text)
    said = str(caught.value)
    assert said.startswith(repr(text)) and all(name in said for name in KEEPS | costs()) and "\n" not in said


@pytest.mark.parametrize(
    "text", ["top1>=-1.0", " top1  >=  -1. ", "top1 >= -.5", "top1 >= +1", "macs<=1", "macs <= 0.6"]
)
def test_spaces_and_forms_of_numbers_do_not_matter(text: str) -> None:
    assert parse_pick(text).bound == float(text.split("=")[1])


def test_an_accuracy_picks_the_cheapest_that_keeps_it(run: Make) -> None:
    runs = [run("r2", 0.2, 79.5), run("r4", 0.4, 79.0), run("r6", 0.6, 78.8), run("r8", 0.8, 60.0)]
    assert picked("top1 >= -1.0", runs) == "r4"
    assert picked("top1 >= -1.3", runs) == "r6"
    assert picked("top1 >= -20", runs) == "r8"


def test_the_mean_over_the_seeds_counts(run: Make) -> None:
    half = [run("half", 0.5, top1, seed) for seed, top1 in enumerate((78.0, 79.6))]
    assert picked("top1 >= -1.2", [*half, run("third", 0.33, 79.9)]) == "half"
    assert picked("top1 >= -1.1", [*half, run("third", 0.33, 79.9)]) == "third"


def test_a_bound_that_is_met_exactly_is_met(run: Make) -> None:
    assert 70.1 - 71.4 < -1.3  # in the last digit
    assert picked("top1 >= -1.3", [run("a", top1=70.1, original=71.4)]) == "a"


def test_agreement_is_in_per_cent_and_top5_in_points_of_change(run: Make) -> None:
    runs = [run(f"r{a}", a / 100, final={"agreement": 100.0 - a, "top5": 95.0 - a / 10}) for a in (10, 20, 30)]
    assert picked("agreement >= 80", runs) == "r20"
    assert picked("top5 >= -2.5", runs) == "r20"


@pytest.mark.parametrize("metric", ["macs", "params", "heads", "neurons", "latency"])
def test_a_cost_picks_the_most_accurate_that_is_cheap_enough(run: Make, timing: Make, metric: str) -> None:
    def made(name: str, share: float, top1: float) -> Measurement:
        final = {
            "macs": int(1000 * share),
            "params": int(2000 * share),
            "heads": int(100 * share),
            "neurons": int(2000 * share),
        }
        return run(name, 1 - share, top1, final=final, neurons=(2000, 2000), timings=(timing(10 * share),))

    runs = [made("big", 0.9, 79.0), made("best", 0.6, 78.0), made("small", 0.5, 77.0)]
    assert picked(f"{metric} <= 0.6", runs) == "best"
    assert picked(f"{metric} <= 0.59", runs) == "small"


def test_without_top1_agreement_decides_and_then_the_feature_error(run: Make) -> None:
    def made(agreement: float | None) -> list[Measurement]:
        pairs = ((0.2, 91.0), (0.4, 95.0))
        return [run(f"r{r}", r, None, final={"agreement": agreement and a}) for r, a in pairs]

    assert picked("macs <= 1", made(1.0)) == "r0.4"
    assert picked("macs <= 1", made(None)) == "r0.2"  # feature_error is the ratio here


def test_references_are_no_candidates(run: Make) -> None:
    small = run("small", 0.9, 80.0, is_reference=True)
    assert picked("top1 >= -20", [small, run("half")]) == "half"


def test_no_point_meets_it(run: Make) -> None:
    runs = [run("far", 0.5, 60.0), run("near", 0.4, 78.5)]
    with pytest.raises(
        StoreError, match=r"'top1 >= -1': none of 2 points meets it; the nearest is near with top1 -1\.5"
    ):
        picked("top1 >= -1", runs)
    with pytest.raises(StoreError, match=r"the nearest is far with macs 0\.75"):
        picked("macs <= 0.1", runs)


@pytest.mark.parametrize(("text", "told"), [("latency <= 0.5", "slimvit bench"), ("top1 >= -1", "give another metric")])
def test_what_nobody_measured_cannot_be_picked_by(run: Make, text: str, told: str) -> None:
    with pytest.raises(StoreError, match=f"no point has its {text.split()[0]}.*{told}"):
        picked(text, [run("a", top1=None)])
