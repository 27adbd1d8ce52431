"""The points that no other beats, and those that lie on one line."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from slimvit.report.compare.measurement import Measurement
from slimvit.report.compare.rows import ComparisonRow, Stat, rows_of
from slimvit.report.compare.series import accuracy_key, front, series_of

Make = Callable[..., Measurement]


def points(runs: list[Measurement]) -> list[ComparisonRow]:
    return [row for row in rows_of(runs) if row.kind == "point"]


def rows(pairs: list[tuple[float, float]], gain: str) -> list[ComparisonRow]:
    return [
        ComparisonRow("point", "tiny", str(i), "", {"macs": Stat(cost, None, 1), gain: Stat(value, None, 1)})
        for i, (cost, value) in enumerate(pairs)
    ]


@pytest.mark.parametrize("gain", ["top1", "agreement", "feature_error"])
def test_the_front_is_what_nothing_beats(gain: str) -> None:
    rng = random.Random(0)
    pairs = [(float(rng.randrange(12)), float(rng.randrange(12))) for _ in range(60)]
    sign = -1 if gain == "feature_error" else 1

    def beaten(c: float, g: float) -> bool:
        return any((oc < c and sign * og >= sign * g) or (oc <= c and sign * og > sign * g) for oc, og in pairs)

    wanted = [str(i) for i, (c, g) in enumerate(pairs) if not beaten(c, g)]
    assert 1 < len(wanted) < 60 and [p.name for p in front(rows(pairs, gain), "macs", gain)] == wanted


@pytest.mark.parametrize(
    ("stds", "best"),
    [((0.4, 0.4), ["a", "b"]), ((0.1, 0.1), ["a"]), ((0.0, 0.0), ["a"]), ((None, None), ["a"])],
    ids=["intervals overlap", "intervals apart", "no spread", "one seed"],
)
def test_points_within_the_noise_are_all_on_the_front(stds: tuple[float | None, float | None], best: list[str]) -> None:
    accuracies = zip(("a", "b"), (70.5, 70.0), stds, strict=True)
    points = [
        ComparisonRow("point", "tiny", name, "", {"macs": Stat(1.0, 0.0, 2), "top1": Stat(mean, std, 2)})
        for name, mean, std in accuracies
    ]
    assert [row.name for row in front(points, "macs", "top1")] == best


def test_a_point_without_a_figure_is_not_on_the_front() -> None:
    known = rows([(1.0, 50.0), (2.0, 60.0)], "top1")
    unknown = ComparisonRow("point", "tiny", "unknown", "", {"macs": Stat(0.5, None, 1)})
    assert front([*known, unknown], "macs", "top1") == known


def test_accuracy_is_the_best_figure_that_most_points_have(run: Make) -> None:
    assert accuracy_key(points([run("a"), run("b", 0.3)])) == "top1"
    assert accuracy_key(points([run("a", top1=None), run("b", 0.3, None)])) == "agreement"
    assert accuracy_key(points([run("a", top1=None, final={"agreement": None})])) == "feature_error"
    assert accuracy_key([]) is None


def test_points_that_differ_in_their_budget_are_a_series(many: list[Measurement]) -> None:
    found = series_of(points(many))
    assert [(s.label, len(s.rows)) for s in found] == [("criterion residual", 4), ("criterion taylor", 4)]


def test_one_series_needs_no_label(many: list[Measurement]) -> None:
    assert [s.label for s in series_of(points(many[:8]))] == [""]


@pytest.mark.parametrize(
    "budget",
    [{"heads": 3}, {"plan": "plan.json"}, {"ratio": 0.3, "mlp_ratio": 0.5}]
    + [{key: 0.3} for key in ("ratio", "mlp_ratio", "target_macs", "target_params", "target_latency")],
)
def test_every_budget_lies_on_the_line(run: Make, budget: dict[str, object]) -> None:
    assert len(series_of(points([run("a"), run("b", recipe={"prune": budget})]))) == 1


def test_folders_are_labelled_by_the_settings_that_differ(run: Make) -> None:
    runs = [
        run(f"runs/{i}", ratio, recipe={"prune": {"ratio": ratio}, "refit": {"target": target}})
        for i, (target, ratio) in enumerate((t, r) for t in ("stream", "own") for r in (0.3, 0.5))
    ]
    assert [s.label for s in series_of(points(runs))] == ["refit stream", "refit own"]


def test_what_may_go_is_told_as_on_the_command_line(run: Make) -> None:
    runs = [
        run(f"runs/{i}", recipe={"prune": {"target_macs": target, "parts": parts}})
        for i, (parts, target) in enumerate((p, t) for p in (["heads"], ["heads", "mlp"], None) for t in (0.7, 0.9))
    ]
    assert [s.label for s in series_of(points(runs))] == ["parts heads", "parts heads,mlp", "parts as needed"]


def test_a_point_alone_is_labelled_by_its_name(run: Make) -> None:
    runs = [run("runs/a"), run("runs/b", recipe={"refit": {"target": "own"}})]
    assert [s.label for s in series_of(points(runs))] == ["runs/a", "runs/b"]
