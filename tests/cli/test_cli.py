"""Every command: what it prints, its help, and that the examples of the help run."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import timm
import yaml

from slimvit.cli import COMMANDS, main
from slimvit.cli.options import GROUPS, parse_pairs

Invoke = Callable[..., Any]
ROOT = Path(__file__).parents[2]
FEW = ("--data", "digits", "--eval-images", 40, "--calibration-images", 32)


def all_commands() -> Iterator[tuple[str, click.Command]]:
    """`prune`, ..., `recipes`, `recipes list`, ... and the command object of each."""
    ctx = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(ctx, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", c) for sub, c in command.commands.items())


NAMES = [name for name, _ in all_commands()]


def examples(help_text: str) -> list[str]:
    """The command lines under `Example:` or `Examples:`."""
    below = re.split(r"^ *Examples?:$", help_text, flags=re.M)[1:]
    return [line.strip() for line in "".join(below).splitlines() if line.strip().startswith("slimvit ")]


@pytest.fixture(scope="module")
def runs(slimvit_: Invoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/digits and runs/other in an otherwise empty folder."""
    work = tmp_path_factory.mktemp("cli")
    slimvit_("prune", "vit_digits", *FEW, "--train-images", 64, "--ratio", 0.5, "--out", work / "runs" / "digits")
    slimvit_("prune", "vit_digits", *FEW, "--heads", 5, "--refit", "none", "--out", work / "runs" / "other")
    return work


# help


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_and_an_example(slimvit_: Invoke, name: str) -> None:
    command = dict(all_commands())[name]
    text = slimvit_(*name.split(), "--help").stdout
    assert command.help and examples(text), text
    for param in command.params:
        if isinstance(param, click.Option):
            known = param.name in ("device", "help") or param.hidden
            assert param.help or known, f"{name} {param.opts}"


@pytest.mark.parametrize("name", [n for n in NAMES if n != "recipes"])
def test_every_command_stands_in_the_readme_or_a_guide(name: str) -> None:
    pages = [ROOT / "README.md", ROOT / "docs" / "quickstart.md", *(ROOT / "docs" / "guides").glob("*.md")]
    assert any(f"slimvit {name}" in page.read_text() for page in pages)


def test_the_overview_lists_every_command(slimvit_: Invoke) -> None:
    text = slimvit_("--help").stdout
    for name, about in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(about)}", text, re.M)
    assert examples(text) and slimvit_("-h").stdout == text
    assert re.search(r"\d+\.\d+\.\d+", slimvit_("--version").stdout)


EXAMPLES = dict.fromkeys(e for name, c in [("", main), *all_commands()] for e in examples(c.help or ""))


@pytest.fixture
def example_folder(runs: Path, digit_folder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with what the examples speak of: runs/digits, photos/, and deit_small's weights without a download."""
    from slimvit.models import build

    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(runs / "runs" / "digits")
    digit_folder(tmp_path / "photos", classes=2, train=4, val=2)
    monkeypatch.setattr(build, "_pretrained", lambda name, kwargs: timm.create_model(name, **kwargs))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("quick_bench")
@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_run(slimvit_: Invoke, example_folder: Path, example: str) -> None:
    if "--out runs/digits " in f"{example} ":
        (example_folder / "runs" / "digits").unlink()
    words = shlex.split(example)[1:]
    limits = ["--train-images", 64, "--eval-images", 40] if words[0] in ("prune", "run", "finetune") else []
    if words[0] == "evaluate" or "inspect vit_digits --data" in example:
        limits = ["--eval-images", 40]
    if words[0] == "prune":
        limits += ["--calibration-images", 32]
    if "--epochs" in words:
        limits += ["--epochs", 2]
    if "deit_small" in example:
        limits += ["--img-size", 32, "--adapt-epochs", 2, "--model-arg", "embed_dim=48", "--model-arg", "depth=4"]
    if words[:2] == ["sweep", "quick"]:  # 48 runs: test_sweep.py runs sweeps
        limits = ["--dry-run"]
    if words[0] == "bench":
        limits = ["--rounds", 20, "--batches", "2"]
    assert slimvit_(*words, *limits).stdout.strip()


# what is printed


def test_evaluate(slimvit_: Invoke, runs: Path) -> None:
    report = json.loads((runs / "runs" / "digits" / "report.json").read_text())
    found = json.loads(slimvit_("evaluate", runs / "runs" / "digits", "--json").stdout)
    last = report["stages"][-1]
    assert found["top1"] == pytest.approx(last["top1"]) and found["loss"] == pytest.approx(last["loss"], rel=1e-4)
    assert (found["heads"], found["params"], found["macs"]) == (18, last["params"], last["macs"])
    assert (found["data"], found["images"]) == ("digits", 40)
    text = slimvit_("evaluate", "vit_digits", "--data", "digits", "--eval-images", 40, "--num-classes", 0).stdout
    assert re.search(r"^top1 +not measured$", text, re.M) and re.search(r"^heads +36$", text, re.M)


def test_inspect(slimvit_: Invoke, runs: Path) -> None:
    plan = json.loads((runs / "runs" / "digits" / "plan.json").read_text())
    found = json.loads(slimvit_("inspect", runs / "runs" / "digits", "--json").stdout)
    assert [b["kept_heads"] for b in found["blocks"]] == [b["kept_heads"] for b in plan["blocks"]]
    assert found["heads"] == [36, 18] and found["note"] is None
    assert sum(found["macs_by_part"].values()) == found["macs"]
    assert sum(found["params_by_part"].values()) == found["params"]
    text = slimvit_("inspect", runs / "runs" / "digits").stdout
    for block in plan["blocks"]:
        ids = ",".join(map(str, block["kept_heads"]))
        kept = f"all {block['heads']}" if len(block["kept_heads"]) == block["heads"] else f"{ids} of {block['heads']}"
        assert re.search(rf"^{block['block']} +{kept} ", text, re.M)


def test_inspect_speaks_of_neurons(slimvit_: Invoke, tmp_path: Path) -> None:
    words = ("--target-macs", 0.2, "--parts", "branches,mlp", "--criterion", "magnitude", "--refit", "none")
    slimvit_("prune", "vit_digits", *FEW, "--train-images", 64, *words, "--out", tmp_path / "run")
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    found = json.loads(slimvit_("inspect", tmp_path / "run", "--json").stdout)
    assert [b["kept_neurons"] for b in found["blocks"]] == [b["kept_neurons"] for b in plan["blocks"]]
    total, kept = found["neurons"]
    text = slimvit_("inspect", tmp_path / "run").stdout
    assert total == 1728 and 0 < kept < total and f" heads, {kept:,} of 1,728 neurons, " in text.splitlines()[0]
    for block in found["blocks"]:
        assert (block["unit_costs"]["heads"] is None) == (not block["kept_heads"])
        told = "all 6" if block["kept_heads"] else "none left"
        assert re.search(rf"^{block['block']} +{told} +(\d+ of 288|none left) ", text, re.M)
    assert any(not b["kept_heads"] for b in found["blocks"])


def test_what_inspect_says_a_part_costs_is_what_its_cut_saves(slimvit_: Invoke, runs: Path) -> None:
    (plan := runs / "one_of_each").mkdir()
    before = json.loads(slimvit_("inspect", "vit_digits", "--json").stdout)
    blocks = [
        {k: b[k] for k in ("block", "stage", "heads", "kept_heads", "neurons", "kept_neurons")}
        for b in before["blocks"]
    ]
    blocks[1] |= {"kept_heads": [0, 1, 2, 3, 4], "kept_neurons": "8-287"}
    (plan / "plan.json").write_text(json.dumps({"format_version": 2, "model": "", "blocks": blocks}))
    words = ("prune", "vit_digits", *FEW, "--plan", plan / "plan.json", "--dry-run", "--json")
    cut, block = json.loads(slimvit_(*words).stdout), before["blocks"][1]
    for what in ("macs", "params"):
        assert cut[what][0] - cut[what][1] == sum(block["unit_costs"][part][what] for part in ("heads", "mlp"))
    assert before["unit_steps"] == {"heads": 1, "mlp": 8, "qk": 8} and cut["neurons"] == [1728, 1720]


def test_inspect_with_data_says_how_much_the_parts_matter(slimvit_: Invoke) -> None:
    words = ("inspect", "vit_digits", "--data", "digits", "--calibration-images", 32)
    found = json.loads(slimvit_(*words, "--json").stdout)
    assert found["scored"] == {"criterion": "residual", "images": 32}
    for block in found["blocks"]:
        for part in ("heads", "mlp"):
            assert 0 < block["matters"][part]["half"] < block["matters"][part]["all"]
        alone = block["unit_scores"]["heads"]
        assert len(alone) == 6 and min(alone) <= block["matters"]["heads"]["half"]
    text = slimvit_(*words).stdout
    assert "refitted, by residual on 32 images" in text
    last = found["blocks"][-1]
    assert text.splitlines()[-1].split()[:2] == ["blocks.5", f"{last['matters']['heads']['all']:.3g}"]
    assert "matters" not in slimvit_("inspect", "vit_digits", "--json").stdout


def test_inspect_refuses_options_of_data_without_data(slimvit_: Invoke) -> None:
    for words in (("--calibration-images", 3), ("--train-images", 9), ("--skip-bad-images",)):
        told = slimvit_("inspect", "vit_digits", *words, code=2).stderr
        assert f"{words[0]} does nothing without --data DATA" in told
    assert (
        "calibration_images is 0"
        in slimvit_("inspect", "vit_digits", "--data", "digits", "--calibration-images", 0, code=1).stderr
    )


def test_inspect_a_timm_model_needs_no_weights(slimvit_: Invoke) -> None:
    found = json.loads(slimvit_("inspect", "deit_tiny_patch16_224", "--json").stdout)
    assert (found["params"], found["heads"], found["num_classes"]) == (5717416, [36, 36], 1000)
    other = json.loads(
        slimvit_("inspect", "deit_tiny_patch16_224", "--num-classes", 7, "--model-arg", "depth=2", "--json").stdout
    )
    assert (other["num_classes"], len(other["blocks"])) == (7, 2)


def test_report_of_one_run_is_its_stages(slimvit_: Invoke, runs: Path) -> None:
    one = runs / "runs" / "digits"
    assert slimvit_("report", one).stdout.strip() == (one / "report.md").read_text().strip()


def test_report_of_several_runs(slimvit_: Invoke, runs: Path) -> None:
    one, two, out = runs / "runs" / "digits", runs / "runs" / "other", runs / "tradeoff"
    words = ("report", one, two, "--pick", "macs <= 0.9")
    text = slimvit_(*words, "--out", out).stdout
    last = json.loads((one / "report.json").read_text())["stages"][-1]
    assert re.search(rf"^original +36 .*^{one} +18 .* {last['top1']:.1f} .*^{two} +30 ", text, re.M | re.S)
    assert f"slimvit run {one}/recipe.yaml --out NEW" in text
    assert {f"tradeoff.{s}" for s in ("csv", "json", "md", "tex", "html")} <= {f.name for f in out.iterdir()}
    slimvit_("report", one, "--out", out, code=1)
    slimvit_("report", one, "--out", out, "--force")
    found = json.loads(slimvit_(*words, "--json").stdout)
    assert [(row["kind"], row["name"]) for row in found["rows"]] == [
        ("original", "original"),
        ("point", str(one)),
        ("point", str(two)),
    ]
    assert found["picks"][0]["name"] == str(one) and found["rows"][1]["top1"] == last["top1"]
    slimvit_(*words, "--out", out, "--force")
    assert json.loads((out / "tradeoff.json").read_text())["rows"] == found["rows"]


def test_report_beside_a_reference(slimvit_: Invoke, runs: Path) -> None:
    one, two = runs / "runs" / "digits", runs / "runs" / "other"
    found = json.loads(slimvit_("report", one, two, "--reference", two, "--json").stdout)
    assert [row["kind"] for row in found["rows"]] == ["original", "reference", "point"]


def test_report_refuses(slimvit_: Invoke, runs: Path) -> None:
    one, two = runs / "runs" / "digits", runs / "runs" / "other"
    usage = slimvit_("report", one, "--pick", "speed > 3", code=2).stderr
    assert "'speed > 3' is not METRIC >= NUMBER" in usage and "top1, top5, agreement" in usage
    told = slimvit_("report", one, two, "--pick", "macs <= 0.1", code=1).stderr
    assert f"the nearest is {one} with macs 0." in told and told.count("\n") == 1
    told = slimvit_("report", one, two, "--out", runs / "runs", "--force", code=1).stderr
    assert "holds runs that the report compares" in told and (one / "report.json").is_file()
    assert not [f for f in runs.iterdir() if f.name.startswith(".")]


def test_models(slimvit_: Invoke) -> None:
    swin, vit = slimvit_("models", "--embedded").stdout.splitlines()
    assert vit.startswith("vit_digits   vit_tiny_patch16_224 (embed_dim 72, depth 6, num_heads 6)")
    assert swin.startswith("swin_digits  swin_tiny_patch4_window7_224 (embed_dim 40, depths [4, 4]")
    rows = json.loads(slimvit_("models", "deit_tiny_*", "--json").stdout)
    assert {"model": "deit_tiny_patch16_224", "about": "12 blocks, 36 heads of 64"} in rows
    assert {"model": "swin_tiny_patch4_window7_224", "about": "12 blocks, 138 heads of 32, tokens stay"} in json.loads(
        slimvit_("models", "swin_tiny_*", "--json").stdout
    )
    embedded = json.loads(slimvit_("models", "--embedded", "--json").stdout)
    assert [row["model"] for row in embedded] == ["swin_digits", "vit_digits"]


def test_recipes(slimvit_: Invoke, tmp_path: Path) -> None:
    listed = slimvit_("recipes", "list").stdout
    for file in (ROOT / "recipes").rglob("*.yaml"):
        assert re.search(rf"^  {file.stem} +\S+", listed, re.M)
        assert slimvit_("recipes", "show", file.stem).stdout == file.read_text()
        assert slimvit_("recipes", "check", file, file.stem).stdout == f"{file}: ok\n{file.stem}: ok\n"
    slimvit_("recipes", "copy", "digits_half", tmp_path)
    slimvit_("recipes", "copy", "digits_half.yaml", tmp_path / "mine.yaml")
    assert {f.name for f in tmp_path.iterdir()} == {"digits_half.yaml", "mine.yaml"}
    slimvit_("recipes", "copy", "digits_half", tmp_path / "mine.yaml", code=1)
    slimvit_("recipes", "copy", "digits_half", tmp_path / "mine.yaml", "--force")
    assert (tmp_path / "mine.yaml").read_text() == (ROOT / "recipes" / "digits_half.yaml").read_text()


def test_run_takes_data_and_seed_over_the_recipe(slimvit_: Invoke, digit_folder: Any, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: {name: vit_digits}\ndata: {name: gone}\nprune: {heads: 5}\nseed: 3\n")
    data = digit_folder(tmp_path / "ten", classes=10, train=2, val=2)
    slimvit_("run", tmp_path / "r.yaml", "--data", data, "--eval-images", 5, "--out", tmp_path / "a")
    slimvit_("run", tmp_path / "r.yaml", "--data", data, "--seed", 4, "--out", tmp_path / "b")
    a, b = (yaml.safe_load((tmp_path / run / "recipe.yaml").read_text()) for run in "ab")
    assert (a["data"]["name"], a["data"]["eval_images"], a["seed"], b["seed"]) == (str(data), 5, 3, 4)


def test_json_is_all_there_is_on_stdout(slimvit_: Invoke, tmp_path: Path) -> None:
    words = ("prune", "vit_digits", *FEW, "--train-images", 32, "--heads", 5, "--finetune-epochs", 1)
    result = slimvit_(*words, "--out", tmp_path / "run", "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "run" / "report.json").read_text())
    assert "cut 6 of 36 heads" in result.stderr and "finetune epoch" in result.stderr
    assert f"run folder: {tmp_path / 'run'}" in result.stderr
    rows = list(csv.DictReader(io.StringIO((tmp_path / "run" / "history.csv").read_text())))
    assert len(rows) == 1 and rows[0]["epoch"] == "1"


# other ways to start


@pytest.mark.parametrize("start", [("-m", "slimvit"), (str(ROOT / "cli.py"),)])
def test_other_launchers(start: tuple[str, ...]) -> None:
    found = subprocess.run([sys.executable, *start, "recipes", "list"], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "") and "digits_half" in found.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from slimvit.cli import main\n"
        "for words in (['--help'], ['prune', '--help'], ['recipes', 'list'], ['recipes', 'show', 'digits_half']):\n"
        "    main(words, standalone_mode=False)\n"
        "print([m for m in ('torch', 'timm', 'pandas', 'pydantic', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert found.stdout.splitlines()[-1] == "[]"


def test_the_python_names_are_all_there() -> None:
    import slimvit

    assert {name for name in slimvit.__all__ if getattr(slimvit, name) is not None} == set(slimvit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'everything'"):
        _ = slimvit.everything


def test_help_is_grouped(slimvit_: Invoke) -> None:
    """Every option stands under a heading, and the headings come in one order."""
    for name, command in all_commands():
        text = slimvit_(*name.split(), "--help").stdout
        found = [title for title in GROUPS if f"\n{title}:\n" in text]
        if not isinstance(command, click.Group):
            assert [line[:-1] for line in text.splitlines() if line[:-1] in GROUPS] == found and "Options:" not in text
            assert [
                o.opts for o in command.params if isinstance(o, click.Option) and not (o.hidden or hasattr(o, "group"))
            ] == []
    assert found
    text = slimvit_("prune", "--help").stdout
    assert text.index("\nBudget:") < text.index("--target-params") < text.index("\nMethod:") < text.index("--criterion")


@pytest.mark.parametrize("name", NAMES)
def test_help_breaks_no_name_of_a_model(slimvit_: Invoke, name: str) -> None:
    assert "hf-\n" not in slimvit_(*name.split(), "--help").stdout


@pytest.mark.parametrize(
    ("text", "value"),
    [("False", False), ("false", False), ("None", None), ("null", None), ("0.5", 0.5), ("1e-5", 1e-5),
     ("'text'", "text"), ("text", "text"), ("[1, 2]", [1, 2]), ("(7, 7)", (7, 7)), ("True", True),
     ("a: b: c", "a: b: c"), ("", "")],
)  # fmt: skip
def test_a_model_argument_is_a_literal_of_python_or_yaml(text: str, value: Any) -> None:
    found = parse_pairs(click.Context(click.Command("c")), click.Option(["--model-arg"]), (f"x={text}",))
    assert found == {"x": value} and type(found["x"]) is type(value)


@pytest.mark.parametrize(
    "given", [("--mean", "a"), ("--std", "0.5,"), ("--interpolation", "cubic"), ("--crop-pct", "x")]
)
def test_preprocessing_is_read_by_the_command_line(slimvit_: Any, given: tuple[str, str]) -> None:
    assert slimvit_("evaluate", "vit_digits", "--data", "digits", *given, code=2).output
