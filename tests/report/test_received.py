"""Reports of runs that somebody else made: their names, notes and paths are only text in every output."""

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from slimvit.config.recipe import DataSection, ModelSection, Recipe
from slimvit.io.sweep_folder import Contents, Entry, write_contents
from slimvit.report.record import Report, Stage
from slimvit.report.timing import Timing, write_timings

EVIL = (
    "=x \x1b[31m\x1b]0;t\a\u202e <script>alert(1)</script> | ``` \n```\n# no\n"
    "\\input{/etc/passwd} % _ $x$ & \" ' [0pt]{"
)
SIGNS = {"\x1b", "\a", "\u202e", "\r", "\x00"}


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    """A run and a sweep of two whose every text is hostile, their folders included."""
    stages = [
        Stage(stage=EVIL, heads=10, params=10, macs=10, top1=90.0, macs_by_part={"qkv": 5, EVIL: 5}),
        Stage(stage=EVIL, heads=5, params=8, macs=7, top1=89.0, macs_by_part={"qkv": 3, EVIL: 4}),
    ]
    report = Report(
        model=EVIL, data=EVIL, device=EVIL, versions={EVIL: EVIL}, notes=[EVIL], stages=stages, images=9,
        input_size=[3, 8, 8],
    )  # fmt: skip
    folders = [
        tmp_path / "[0pt] =$x$ `a|b` \n```\n\x1b[31m<script>",
        tmp_path / "s" / "points" / "a",
        tmp_path / "s/points/b",
    ]
    for seed, folder in enumerate(folders):
        folder.mkdir(parents=True)
        report.model_copy(update={"seed": seed}).write(folder / "report.json")
        recipe = Recipe(model=ModelSection(name=EVIL), data=DataSection(name=f"./{EVIL}"))
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        timing = Timing(
            device=EVIL, precision="fp32", compiled=False, rounds=3, latency_ms=1.0, latency_speedup=2.0, remark=EVIL
        )
        write_timings(folder, [timing])
    entries = [Entry(id="a", name=EVIL), Entry(id="b", name="[x"), Entry(id="c", name="c", error=EVIL)]
    write_contents(tmp_path / "s", Contents(points=entries))
    return [folders[0], tmp_path / "s"]


class Tags(HTMLParser):
    """Names of the tags of a page, and its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)


def test_hostile_texts_are_only_texts(places, slimvit_, tmp_path):
    out = tmp_path / "out"
    told = slimvit_("report", *places, "--out", out, "--pick", "top1 >= -5")
    assert not SIGNS & set(told.stdout + told.stderr)
    assert all(line.startswith("note: ") for line in told.stderr.splitlines())
    texts = {name: (out / f"tradeoff.{name}").read_text() for name in ("md", "tex", "html", "csv", "json")}
    assert not any(SIGNS & set(text) for text in texts.values())

    outside = re.sub(r"^(`{3,})sh\n.*?^\1$", "", texts["md"], flags=re.M | re.S)
    assert outside != texts["md"] and not re.search(r"(?<!\\)<script|^# no|^```", outside, re.M)
    rows = [re.sub(r"\\.", "", line).count("|") for line in outside.splitlines() if line.startswith("|")]
    assert len(rows) > 3 and len(set(rows)) == 1

    commands = [line for line in texts["tex"].splitlines() if not line.startswith("%")]
    own = r"\\(begin|end)\{tabular\}(\{\w+\})?|\\(top|mid|bottom)rule|\\\\"
    own += r"|\\text\w+\{\}|\\[&%$#_{}]|\$[-<>|]\$|\$\\pm\$|\{\[\}"
    assert not any(re.search(r"[\\$%#_^{}~]", re.sub(own, "", line)) for line in commands), commands
    assert not any(line.startswith(("[", "*")) for line in commands)

    tags = Tags()
    tags.feed(texts["html"])
    assert tags.found.count("script") == 1 and "input" not in tags.found

    for row in csv.DictReader(io.StringIO(texts["csv"])):
        assert not any(cell.lstrip().startswith(("=", "+", "@")) for cell in row.values())


def test_so_are_they_in_the_report_of_one_run(places, slimvit_):
    told = slimvit_("report", places[0]).stdout
    assert not SIGNS & set(told) and not re.search(r"(?<!\\)<script|^# no|^```", told, re.M)


def test_an_error_about_a_hostile_name_is_one_line(places, slimvit_, tmp_path):
    (places[0] / "report.json").write_text("{")
    for words in (("report", places[0]), ("evaluate", places[0], "--data", "digits"), ("inspect", f"{places[0]}x")):
        told = slimvit_(*words, code=1).stderr
        assert told.count("\n") == 1 and told.startswith("Error: ") and not SIGNS & set(told)


def test_only_one_function_writes_to_the_terminal():
    """The commands print through `shared.echo`, which lets no control characters out."""
    sources = {path.name: path.read_text() for path in (Path(__file__).parents[2] / "slimvit" / "cli").glob("*.py")}
    assert {name: text.count("click.echo(") for name, text in sources.items() if "click.echo(" in text} == {
        "shared.py": 1
    }
