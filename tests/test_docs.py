"""README and the documentation: what they tell a reader to type is typed here, in order, in one folder."""

from __future__ import annotations

import itertools
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
import torch
import yaml
from sklearn.datasets import load_digits

import slimvit
from slimvit.cli import main
from slimvit.prune.costs import latency_profile

ROOT = Path(__file__).parents[1]


NAV = re.findall(r'= "([\w/]+\.md)"', (ROOT / "zensical.toml").read_text())
"""The pages in the order of the navigation."""
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", *(f"docs/{n}" for n in NAV))}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.M | re.S)


def commands(page: str) -> list[list[str]]:
    lines = "".join(blocks(page, "sh")).replace("\\\n", "").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


TYPED = [words for page in PAGES for words in commands(page)]


@pytest.fixture
def work(tmp_path: Path, digit_folder: Any, drawing: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What a reader is taken to have: photos of two classes, images without, a fine-tuned model; of the digits, a
    sixth."""
    some = load_digits()
    some.images, some.target = some.images[:300], some.target[:300]
    monkeypatch.setattr("slimvit.data.digits._read_digits", lambda: some)
    digit_folder(tmp_path / "photos", classes=2, train=2, val=1)
    digit_folder(tmp_path / "images", classes=2, train=2, val=1, labelled=False)
    name = "deit_small_patch16_224"
    mine = timm.create_model(name, num_classes=2, img_size=SMALL[name], embed_dim=48, depth=4)
    torch.save(mine.state_dict(), tmp_path / "mine.pth")
    monkeypatch.chdir(tmp_path)
    with drawing():
        yield tmp_path


@pytest.fixture
def quick_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of a latency profile runs once, and takes as long as it has parameters."""

    def timed(module: Any, *args: Any, **kwargs: Any) -> float:
        module(*args, **kwargs)
        return 1e-6 * sum(p.numel() for p in module.parameters())

    monkeypatch.setattr(latency_profile, "ROUNDS", (1, 1))
    monkeypatch.setattr(latency_profile, "TURN", 1e-9)
    monkeypatch.setattr(latency_profile, "timed", timed)


def edit(recipe: Path) -> None:
    """Fewer images, and of a sweep one value each."""
    text = recipe.read_text()
    if "grid:" in text:
        sweep = yaml.safe_load(text)
        sweep["grid"] = {key: values[:1] for key, values in sweep["grid"].items()} | {"prune.ratio": [0.25, 0.5]}
        sweep["base"]["data"]["eval_images"] = 64
        recipe.write_text(yaml.safe_dump(sweep))
        return
    assert "  name: digits\n" in text
    recipe.write_text(text.replace("  name: digits\n", "  name: digits\n  train_images: 64\n  eval_images: 64\n"))


SMALL = {"deit_small_patch16_224": 32, "vit_small_patch14_dinov2": 28}
"""Side of the input that a model is given here, pixels."""


def quick(words: list[str]) -> list[str]:
    """What makes a command smaller: less of a network, fewer images and turns of a clock, one process, no download."""
    if words[1] == "bench":
        return ["--rounds", "20", "--batches", "2"]
    if words[1] == "sweep":  # test_several_processes_give_the_same_figures starts several
        return ["--jobs", "1"]
    if words[1] == "export" or words[1] == "inspect" and "--data" in words:
        return ["--eval-images", "40"]
    if words[1] != "prune":
        return []
    more = ["--calibration-images", "32", "--eval-images", "40"] + ["--train-images", "64"] * (
        "--finetune-epochs" in words
    )
    if words[2] in SMALL:
        more += ["--img-size", str(SMALL[words[2]]), "--model-arg", "embed_dim=48", "--model-arg", "depth=4"]
        more += ["--no-pretrained"] * ("--weights" not in words)
    return more


@pytest.mark.usefixtures("quick_bench", "quick_profile")
def test_commands_and_code_run(slimvit_: Callable[..., Any], work: Path) -> None:
    """A command that stands on several pages runs once; the code of a page is one program."""
    ran: list[list[str]] = []
    for page in PAGES:
        for words in commands(page):
            if words[0] == "slimvit" and words not in ran:
                assert slimvit_(*words[1:], *quick(words)).stdout.strip(), (page, words)
                assert "--out" not in words or (work / words[words.index("--out") + 1]).exists()
                ran.append(words)
            if words[1:3] == ["recipes", "copy"]:  # copied to be edited: fewer images
                edit(work / words[-1])
        program: dict[str, Any] = {}
        for block in blocks(page, "python") if "extend" not in page else ():  # test_extending.py runs those
            exec(compile(block, page, "exec"), program)
    assert len(ran) >= 30


def test_other_commands_are_known() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for words in TYPED:
        if words[0] == "make":
            assert words[1:] and set(words[1:]) <= set(targets), words
        elif words[0] in ("accelerate", "torchrun"):  # test_distributed.py launches; here, that the words are ours
            name, *rest = words[words.index("slimvit") + 1 :]
            assert main.get_command(click.Context(main), name).make_context(name, rest).params["out"]
        else:
            assert words[0] == "slimvit" or words[:3] == ["pip", "install", "."], words


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page: str) -> None:
    """Files that links lead to, and files and folders of the repository in the text (NAME is the reader's)."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.M | re.S)
    links = [(ROOT / page).parent / link for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text)]
    files = [ROOT / name for name in re.findall(r"`(?:python )?((?:benchmarks|docs|slimvit|tests)/[\w/.]+)`", text)]
    assert not [path for path in links + files if not path.exists() and path.stem != "NAME"]


def test_every_page_is_in_the_navigation() -> None:
    assert {f"docs/{name}" for name in NAV} == {str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")}


def test_every_public_name_is_in_the_reference() -> None:
    assert re.findall(r"^ +heading: slimvit\.(\w+)$", PAGES["docs/reference/api.md"], re.M) == sorted(
        slimvit.__all__, key=str.lower
    )


def test_generated_blocks_are_current() -> None:
    """`make reference` would change nothing."""
    pytest.importorskip("cogapp", reason="needs the extra docs")
    recipe = re.search(r"\n\t\$\(BIN\)/cog -r (.*)", (ROOT / "Makefile").read_text())
    assert recipe is not None
    words = [sorted(ROOT.glob(word)) if word.endswith(".md") else [word] for word in shlex.split(recipe[1])]
    command = [sys.executable, "-m", "cogapp", "--check", "--diff", *map(str, itertools.chain(*words))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"run make reference\n{done.stdout}{done.stderr}"


def test_the_readme_is_short_and_shows_every_package() -> None:
    readme = PAGES["README.md"]
    assert len(readme.splitlines()) <= 150
    packages = {p.parent.name for p in (ROOT / "slimvit").glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/ ", readme, re.M)) == packages
