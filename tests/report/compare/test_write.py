"""The folder of a report: what is in it, that it repeats itself, and that nothing in a name becomes markup."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from slimvit.config.sweep import PublishedFigure
from slimvit.report.compare.comparison import Comparison, compare_runs
from slimvit.report.compare.formats import write_comparison
from slimvit.report.compare.html import page
from slimvit.report.compare.measurement import CollectedRuns, Measurement
from slimvit.report.compare.part_plots import curve_key, fine_tuning
from slimvit.report.compare.pick import parse_pick
from slimvit.report.compare.tradeoff_plots import accuracy_against

Make = Callable[..., Measurement]
TABLES = {f"tradeoff.{suffix}" for suffix in ("csv", "json", "md", "tex", "html")}
HISTORY = ({"epoch": 1, "top1": 60.0},)
PICTURES = {"accuracy_flops", "accuracy_latency", "flops_by_part", "fine_tuning"}


def compared(*runs: Measurement, picks: tuple[str, ...] = (), **given: Any) -> Comparison:
    return compare_runs(CollectedRuns(runs, **given), [parse_pick(p) for p in picks])


def texts(path: Path) -> list[str]:
    """What is written in a picture: matplotlib leaves each text in the SVG as a comment."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    comments = ElementTree.parse(path, parser).getroot().iter(ElementTree.Comment)
    return [str(c.text).strip() for c in comments]


class Page(HTMLParser):
    """Tags with their attributes, and the text outside style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("style", "script"):
            self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def whole(many: list[Measurement]) -> Comparison:
    claims = (("sweep", PublishedFigure(point="criterion residual", top1=1.0, source="X")),)
    return compared(*many, picks=("macs <= 0.9",), claims=claims)


@pytest.fixture(scope="module")
def folder(whole: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written")
    write_comparison(whole, out)
    return out


def test_the_folder_is_complete(folder: Path) -> None:
    assert {f.name for f in folder.iterdir()} == TABLES | {f"{p}.{s}" for p in PICTURES for s in ("png", "svg")}
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in folder.glob("*.png"))


def test_the_same_runs_give_the_same_bytes(whole: Comparison, folder: Path, tmp_path: Path) -> None:
    write_comparison(whole, tmp_path)
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes(), file.name


def test_the_picture_names_lines_and_what_is_special(
    folder: Path, many: list[Measurement], run: Make, tmp_path: Path
) -> None:
    shown = texts(folder / "accuracy_flops.svg")
    wanted = ("criterion residual", "criterion taylor", "original", "ratio 0.2", "Top-1 against FLOPs")
    assert all(t in shown for t in wanted) and "reference" not in shown
    assert "latency of one image (ms)" in texts(folder / "accuracy_latency.svg")
    small = run("small", 0.7, 50.0, is_reference=True)
    accuracy_against(compared(*many, small), "macs", tmp_path / "a.svg")
    shown = texts(tmp_path / "a.svg")
    assert "reference" in shown and shown.count("small") == 1


def test_many_unlike_points_are_numbered_not_named(run: Make, tmp_path: Path) -> None:
    prunes = [{"ratio": 0.1 + i / 40, "calibration_images": 9 + i} for i in range(30)]
    runs = [run(f"point {i}", prune["ratio"], 80 - i, recipe={"prune": prune}) for i, prune in enumerate(prunes)]
    accuracy_against(compared(*runs), "macs", tmp_path / "a.svg")
    shown = texts(tmp_path / "a.svg")
    assert shown.count("point 29") == 1 and "point 3" not in shown  # the cheapest of the front, in the legend
    assert len(shown) < 60


@pytest.mark.parametrize(
    ("figures", "axis"),
    [({}, "same prediction as the original (%)"), ({"agreement": None}, "feature error")],
    ids=["agreement", "feature error"],
)
def test_without_top1_something_else_is_drawn(run: Make, tmp_path: Path, figures: dict[str, Any], axis: str) -> None:
    runs = [run(f"r{r}", r, None, original=None, final=figures) for r in (0.3, 0.5)]
    accuracy_against(compared(*runs), "macs", tmp_path / "a.svg")
    assert axis in texts(tmp_path / "a.svg")


def test_what_cannot_be_drawn_is_told(run: Make, timing: Callable[..., Any], tmp_path: Path) -> None:
    one = run("a", timings=(timing(8.0),))
    write_comparison(compared(one, run("b", 0.3)), tmp_path)
    assert "not drawn: 1 of 2 runs were not timed on a CPU, fp32" in (tmp_path / "tradeoff.md").read_text()
    assert {f.stem for f in tmp_path.glob("*.svg")} == {"accuracy_flops", "flops_by_part"}
    (old := tmp_path / "old").mkdir()
    write_comparison(compared(run("a", parts=False), run("b", 0.3, parts=False)), old)
    assert not (old / "flops_by_part.svg").exists()
    assert "FLOPs by part are unknown for 3 of 3 rows" in (old / "tradeoff.md").read_text()


def test_the_parts_add_up(folder: Path, many: list[Measurement]) -> None:
    shown = texts(folder / "flops_by_part.svg")
    assert all(part in shown for part in ("qkv", "attention", "proj", "mlp", "rest", "original"))
    for row in compared(*many).rows:
        assert row.parts is not None and sum(row.parts.values()) == pytest.approx(row.value("macs"))


def test_the_page_needs_nothing_else(folder: Path) -> None:
    text = (folder / "tradeoff.html").read_text()
    found = Page(text)
    links = [v for _, attrs in found.tags for k, v in attrs.items() if k in ("src", "href")]
    assert links and all(v is not None and v.startswith("data:") for v in links)
    assert not re.search(r"https?://|@import|url\(", text)
    pictures = [v for _, attrs in found.tags if (v := attrs.get("src"))]
    assert len(pictures) == len(PICTURES)
    for data in pictures:
        assert b"<svg" in b64decode(data.split(",")[1])


def test_the_page_shows_the_table(folder: Path, many: list[Measurement]) -> None:
    found = Page((folder / "tradeoff.html").read_text())
    said = "".join(found.texts)
    assert found.count("tbody") == 2 and "Claimed beside measured" in said
    assert "Picked by macs <= 0.9" in said and "78.5 ± 0.7" in said
    commands = {m.command(m.shown) for m in many if m.report.seed == 0}
    assert all(command in said for command in commands)


def test_no_name_becomes_markup(run: Make, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"
    (picture := tmp_path / "head_map.png").write_bytes(b"\x89PNG")
    told = {"model": evil, "data": evil, "notes": [evil]}
    odd = run(evil, model=evil, folder=f"runs/{evil}", pictures={evil: picture}, report=told)
    claims = (("s", PublishedFigure(point=evil, top1=1.0, source=evil)),)
    text = page(compared(odd, picks=("macs <= 1",), notes=(evil,), claims=claims), {evil: picture})
    plain = page(
        compared(run("a", pictures={"heads": picture}), picks=("macs <= 1",), claims=claims[:0]), {"b": picture}
    )
    found = Page(text)
    assert (found.count("script"), found.count("img")) == (Page(plain).count("script"), Page(plain).count("img"))
    assert not any(k.startswith("on") for _, attrs in found.tags for k in attrs)
    assert "".join(found.texts).count(evil) >= 8


def test_no_name_becomes_a_formula_or_vanishes_from_a_picture(run: Make, tmp_path: Path) -> None:
    names = (r"a $\\frac{$ b", "_hidden")
    runs = [run(n, 0.3, recipe={"refit": {"ridge": 1.0 + i}}, history=HISTORY) for i, n in enumerate(names)]
    write_comparison(compared(*runs, run(names[0], 0.4, 50.0, is_reference=True)), tmp_path)
    for picture in ("accuracy_flops", "fine_tuning"):
        shown = "\n".join(texts(tmp_path / f"{picture}.svg"))
        assert "frac{" in shown and "_hidden" in shown


def test_pictures_of_runs_are_folded_up_and_left_out_of_many(run: Make, tmp_path: Path) -> None:
    (picture := tmp_path / "head_map.png").write_bytes(b"\x89PNG")
    runs = [run(f"p{i}", 0.1 + i / 50, pictures={"heads kept": picture}) for i in range(13)]
    assert Page(page(compared(*runs[:12]), {})).count("details") == 12
    assert Page(page(compared(*runs), {})).count("details") == 0


def test_curves_are_means_over_the_seeds(run: Make, tmp_path: Path) -> None:
    runs = [run("a", seed=s, history=({"epoch": 1, "top1": 60.0 + s},)) for s in (0, 1)]
    comparison = compared(*runs, run("b", 0.3))
    assert curve_key(comparison) == "top1"
    fine_tuning(comparison, "top1", tmp_path / "c.svg")
    assert texts(tmp_path / "c.svg").count("a") == 1 and "b" not in texts(tmp_path / "c.svg")
    assert curve_key(compared(run("b"))) is None
    assert curve_key(compared(replace(runs[0], history=({"epoch": 1, "agreement": 9.0},)))) == "agreement"
