"""One table as CSV, JSON, Markdown, LaTeX and at the terminal."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from slimvit.config.sweep import PublishedFigure
from slimvit.report.compare.cells import print_comparison
from slimvit.report.compare.comparison import Comparison, compare_runs
from slimvit.report.compare.formats import comparison_markdown, latex, to_csv, to_json
from slimvit.report.compare.html import page
from slimvit.report.compare.measurement import CollectedRuns, Measurement
from slimvit.report.compare.pick import parse_pick

Make = Callable[..., Measurement]


def compared(*runs: Measurement, picks: tuple[str, ...] = (), **given: Any) -> Comparison:
    return compare_runs(CollectedRuns(runs, **given), [parse_pick(p) for p in picks])


def table(text: str) -> list[dict[str, str]]:
    """The rows of the first Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def shown(comparison: Comparison) -> str:
    out = io.StringIO()
    print_comparison(comparison, out)
    return out.getvalue()


def test_every_format_has_the_figures(run: Make) -> None:
    seeds = [run("half", 0.5, top1, seed, epochs=3) for seed, top1 in enumerate((70.0, 71.0))]
    found = compared(*seeds, run("third", 0.33, 75.04, epochs=3))
    original, half, third = table(comparison_markdown(found))
    assert original | {"top-1": "80.0", "change": "+0.0", "epochs": "-", "seeds": "-", "front": ""} == original
    assert half | {"name": "half", "heads": "50", "top-1": "70.5 ± 0.7", "change": "-9.5 ± 0.7", "seeds": "2"} == half
    assert third | {"top-1": "75.0", "seeds": "1", "epochs": "3", "front": "\\*"} == third
    assert "half & 50 & 0.00 & 0.000 & 70.5 $\\pm$ 0.7" in latex(found) and "$-$9.5 $\\pm$ 0.7" in latex(found)
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert [(r["kind"], r["top1"], r["seeds"]) for r in rows] == [
        ("original", "80.0", ""),
        ("point", "70.5", "0 1"),
        ("point", "75.04", "0"),
    ]
    data = to_json(found)["rows"][1]
    assert data["top1"] == 70.5 and data["top1_std"] == pytest.approx(0.5**0.5) and data["seeds"] == [0, 1]
    assert data["runs"] == ["runs/half_s0", "runs/half_s1"] and data["macs_by_part"]["mlp"] == 450
    assert data["command"] == "slimvit run runs/half_s0/recipe.yaml --out NEW"
    assert "70.5 +-0.7" in shown(found) and shown(found).isascii()


def test_seconds_are_nowhere(run: Make) -> None:
    """So that an interrupted and resumed run gives the same files."""
    slow, fast = (compared(run("half", final={"seconds": s})) for s in (1.0, 99.0))
    assert json.dumps(to_json(slow)) == json.dumps(to_json(fast)) and "seconds" not in json.dumps(to_json(slow))
    assert (comparison_markdown(slow), latex(slow), to_csv(slow)) == (
        comparison_markdown(fast),
        latex(fast),
        to_csv(fast),
    )


def test_what_was_not_measured(run: Make) -> None:
    found = compared(run("a", final={"top5": None}), run("b", 0.3))
    assert table(comparison_markdown(found))[1]["top-5"] == "-" and "- -: not measured" in comparison_markdown(found)
    assert " & - & " in latex(found) and "% -: not measured" in latex(found)
    assert "-: not measured" in shown(found)
    assert to_json(found)["rows"][1]["top5"] is None and ",," in to_csv(found).splitlines()[2]
    nobody = compared(run("a", top1=None, original=None))
    assert "top-1" not in table(comparison_markdown(nobody))[0] and "latency" not in comparison_markdown(nobody)


def test_times_of_one_setting_are_shown_and_others_told(run: Make, timing: Callable[..., Any]) -> None:
    one, other = run("a", timings=(timing(8.0),)), run("b", 0.3, timings=(timing(9.0), timing(3.0, precision="bf16")))
    found = compared(one, other)
    assert [row["latency (ms)"] for row in table(comparison_markdown(found))] == ["10.00", "8.00", "9.00"]
    assert found.notes == ("times under other settings are left out: a CPU, bf16",) and found.untimed == 0
    assert to_json(found)["times"] == {"device": "a CPU", "precision": "fp32", "compiled": False}


def test_notes_of_the_reports_come_first_and_once(run: Make) -> None:
    noted = {"report": {"notes": ["the MAC counters disagree"]}}
    found = compared(run("a", **noted), run("b", 0.3), run("c", 0.4, **noted), notes=("2 points failed: x, y",))
    assert found.notes == ("a, c: the MAC counters disagree", "2 points failed: x, y")
    text = comparison_markdown(found)
    assert text.index("counters disagree") < text.index("2 points failed") < text.index("| name")
    assert text.count("counters disagree") == 1


def test_models_and_data_have_a_column_where_they_differ(run: Make) -> None:
    assert table(comparison_markdown(compared(run("a"))))[0].keys().isdisjoint({"model", "data"})
    found = compared(run("a"), run("b", 0.3, model="big", report={"data": "photos/", "model": "big"}))
    assert [(r["model"], r["name"]) for r in table(comparison_markdown(found))] == [
        ("tiny", "original"), ("big", "original"), ("tiny", "a"), ("big", "b"),
    ]  # fmt: skip
    assert table(comparison_markdown(found))[3]["data"] == "photos/, 360 images, 1x16x16"


def test_markup_in_names_stays_text(run: Make) -> None:
    name = r"a|b*c`d<e>[f] 50 % & $x_1$ #{~^\}"
    found = compared(run(name, folder="runs/a b"), notes=("x|y <b>",))
    row = table(comparison_markdown(found))[1]
    assert re.sub(r"\\(.)", r"\1", row["name"]) == name and "<" not in comparison_markdown(found).replace("\\<", "")
    body = latex(found).split(r"\midrule")[2]
    assert r"50 \% \& \$x\_1\$ \#\{\textasciitilde{}\textasciicircum{}\textbackslash{}\}" in body
    assert body.count(" & ") == latex(found).split(r"\toprule")[1].split(r"\midrule")[0].count(" & ")
    assert "slimvit run 'runs/a b/recipe.yaml' --out NEW" in comparison_markdown(found)


def test_claims_stand_beside_what_was_measured(many: list[Measurement]) -> None:
    claims = [
        PublishedFigure(point="criterion residual", top1=79.0, source="A"),
        PublishedFigure(point="criterion residual, ratio 0.2", change=-1.5, source="B"),
        PublishedFigure(point="criterion taylor", against="criterion residual", change=-3.0, source="C"),
        PublishedFigure(point="criterion magnitude", top1=1.0, source="D"),
    ]
    found = compared(*many, claims=tuple(("sweep", c) for c in claims))
    told = [
        (c.point, c.figure, c.claimed, None if c.measured is None else round(c.measured.mean, 6)) for c in found.claims
    ]
    assert told[:4] == [(f"criterion residual, ratio {r}", "top-1", 79.0, 80.5 - 10 * r) for r in (0.2, 0.4, 0.6, 0.8)]
    assert told[4] == ("criterion residual, ratio 0.2", "change against the original", -1.5, -1.5)
    assert told[5:9] == [
        (f"criterion taylor, ratio {r}", "change against criterion residual", -3.0, pytest.approx(-20 * r))
        for r in (0.2, 0.4, 0.6, 0.8)
    ]
    assert told[9] == ("criterion magnitude", "top-1", 1.0, None)
    text = comparison_markdown(found).split("## Claimed beside measured")[1]
    assert table(text)[0]["measured"] == "78.5 ± 0.7" and table(text)[9]["measured"] == "-"
    assert compared(*many, claims=(("other", claims[0]),)).claims[0].measured is None


def test_the_pick_is_told_with_its_command(many: list[Measurement]) -> None:
    found = compared(*many, picks=("top1 >= -4", "macs <= 0.7"))
    assert [p["name"] for p in to_json(found)["picks"]] == [
        "criterion residual, ratio 0.4",
        "criterion residual, ratio 0.6",
    ]
    assert "Picked by `top1 >= -4` (fewest FLOPs): **criterion residual, ratio 0.4**" in comparison_markdown(found)
    lines = shown(found).splitlines()
    at = lines.index("pick top1 >= -4 (fewest FLOPs): criterion residual, ratio 0.4")
    assert "change -3.5 +-0.7" in lines[at + 1]
    assert lines[at + 2].strip() == "slimvit run sweep/points/residual-0.4-0/recipe.yaml --out NEW"


def test_neurons_have_a_column_where_a_row_has_fewer_than_its_original(run: Make) -> None:
    old, cut = run("old", 0.3), run("cut", 0.5, neurons=(2000, 1000))
    whole = compared(old, run("whole", 0.4, neurons=(2000, 2000)))
    told = compared(old, cut, picks=("macs <= 0.9",))
    for text in (
        to_csv(whole),
        comparison_markdown(whole),
        latex(whole),
        shown(whole),
        page(whole, {}),
        json.dumps(to_json(whole)),
    ):
        assert "neurons" not in text
    for text in (
        to_csv(told),
        comparison_markdown(told),
        latex(told),
        shown(told),
        page(told, {}),
        json.dumps(to_json(told)),
    ):
        assert "neurons" in text
    assert {row["name"]: row["neurons"] for row in table(comparison_markdown(told))}["cut"] == "1,000"
    assert {row["name"]: row["neurons"] for row in table(comparison_markdown(told))}["old"] == "-"
    assert {row["name"]: row["neurons"] for row in to_json(told)["rows"]} == {
        "original": 2000,
        "old": None,
        "cut": 1000,
    }


def test_a_model_without_any_neuron_has_fewer(run: Make) -> None:
    assert table(comparison_markdown(compared(run("none", neurons=(2000, 0)))))[1]["neurons"] == "0"
