"""Which runs share a row, and what stands in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import stdev
from typing import Any

import pytest

from slimvit.report.compare.measurement import Measurement
from slimvit.report.compare.rows import ComparisonRow, rows_of

Make = Callable[..., Measurement]


def kinds(rows: list[ComparisonRow]) -> list[tuple[str, str, int]]:
    return [(row.kind, row.name, len(row.runs)) for row in rows]


def test_seeds_of_one_recipe_are_a_row_with_mean_and_spread(run: Make) -> None:
    runs = [run("half", 0.5, top1, seed) for seed, top1 in enumerate((70.0, 71.0, 75.0))]
    original, half = rows_of([*runs[:2], run("third", 0.33), runs[2]])[:2]
    assert kinds([original, half]) == [("original", "original", 0), ("point", "half", 3)]
    top1 = half.stats["top1"]
    assert (top1.mean, top1.std, top1.count) == (72.0, pytest.approx(stdev((70.0, 71.0, 75.0))), 3)
    assert half.stats["change"].mean == -8.0 and half.stats["change"].std == top1.std
    assert half.stats["macs"].std == 0 and half.seeds == [0, 1, 2]


def test_one_run_has_no_spread(run: Make) -> None:
    assert rows_of([run("half")])[1].stats["top1"].std is None


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1, "recipe": {"refit": {"target": "none"}}},
        {"seed": 1, "ratio": 0.4},
        {"seed": 0, "folder": "again"},
        {"seed": 1, "recipe_is": None},
    ],
    ids=["another setting", "another budget", "the same seed", "no recipe"],
)
def test_what_differs_in_more_than_the_seed_has_its_own_row(run: Make, other: dict[str, Any]) -> None:
    without = other.pop("recipe_is", 0) is None
    second = run("b", **other)
    rows = rows_of([run("a"), replace(second, recipe=None) if without else second])
    assert kinds(rows)[1:] == [("point", "a", 1), ("point", "b", 1)]


def test_rows_have_unlike_names(run: Make) -> None:
    rows = rows_of([run("half", folder="a/half"), run("half", 0.4, folder="b/half"), run("third", 0.33)])
    assert [row.name for row in rows] == ["original", "half (a/half)", "half (b/half)", "third"]


@pytest.mark.parametrize(
    ("folders", "name"),
    [(("r/a_s0", "r/a_s1"), "r/a_s*"), (("r/a", "r/b"), "r/a (2 seeds)"), (("x", "y"), "x (2 seeds)")],
)
def test_folders_of_several_seeds_are_named_as_a_pattern(run: Make, folders: tuple[str, str], name: str) -> None:
    runs = [run(folder, seed=seed) for seed, folder in enumerate(folders)]
    assert rows_of(runs)[1].name == name


def test_runs_of_one_network_share_its_row(run: Make) -> None:
    rows = rows_of([run("a"), run("b", 0.3), run("c", model="big", original=85.0)])
    assert [(row.model, row.value("top1")) for row in rows[:2]] == [("tiny", 80.0), ("big", 85.0)]
    assert [row.kind for row in rows] == ["original"] * 2 + ["point"] * 3


def test_an_original_that_every_seed_trained_is_one_row_with_a_spread(run: Make) -> None:
    adapted = {"recipe": {"adapt": {"epochs": 2}}}
    runs = [run("a", ratio, seed=seed, original=80.0 + seed, **adapted) for ratio in (0.3, 0.5) for seed in (0, 1)]
    goes_on = run("tuned", original=81.0, recipe={"finetune": {"epochs": 3}}, folder="tuned")
    original, *points = rows_of([*runs[:-1], goes_on])  # a seed of one ratio is missing
    assert original.stats["top1"].mean == 80.5 and original.stats["top1"].count == 2
    assert all(row.kind == "point" for row in points)


def test_other_images_are_another_original(run: Make) -> None:
    rows = rows_of([run("a"), run("b", report={"data": "photos/"})])
    assert [row.data for row in rows[:2]] == ["digits, 360 images, 1x16x16", "photos/, 360 images, 1x16x16"]


def test_references_stand_before_the_points_and_bring_no_original(run: Make) -> None:
    small = run("small", model="small", original=50.0, is_reference=True)
    assert kinds(rows_of([run("half"), small])) == [
        ("original", "original", 0),
        ("reference", "small", 1),
        ("point", "half", 1),
    ]


def test_random_weights_are_nothing_to_compare_with(run: Make) -> None:
    scratch = {"recipe": {"model": {"name": "tiny", "pretrained": False}}}
    original, cut = rows_of([run("cut", original=10.0, **scratch)])
    assert {"top1", "change", "agreement", "feature_error"} & original.stats.keys() == set()
    assert "change" not in cut.stats and "agreement" not in cut.stats and cut.value("top1") == 70.0
    assert cut.value("macs_share") == pytest.approx(0.75) and original.value("macs") == 1000
    whole = run("whole", final={"macs": 1000}, original=10.0, **scratch)
    assert kinds(rows_of([whole])) == [("point", "whole", 1)]


def test_times_are_those_of_the_setting(run: Make, timing: Callable[..., Any]) -> None:
    timed = run("half", timings=(timing(8.0), timing(4.0, precision="bf16")))
    rows = {kind: {row.kind: row for row in rows_of([timed], ("a CPU", kind, False))} for kind in ("fp32", "bf16")}
    assert rows["fp32"]["point"].value("latency_ms") == 8.0 and rows["bf16"]["point"].value("latency_ms") == 4.0
    assert rows["fp32"]["point"].value("latency_ms_share") == pytest.approx(0.8)
    assert rows["fp32"]["original"].value("latency_ms") == pytest.approx(10.0)
    assert rows["fp32"]["original"].value("throughput") == pytest.approx(2.5)
    assert "latency_ms" not in rows_of([timed])[1].stats
