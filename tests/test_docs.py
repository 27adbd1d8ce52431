"""What README.md tells a reader to type is typed here, in order, in one folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import timm
import torch
import yaml
from sklearn.datasets import load_digits

from slimvit.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


COMMANDS = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
COMMANDS = [words for words in COMMANDS if words]


@pytest.fixture
def work(tmp_path: Path, digit_folder: Any, drawing: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What a reader is taken to have: photos/ with two classes, and a DeiT's weights; of the digits, a third."""
    some = load_digits()
    some.images, some.target = some.images[:500], some.target[:500]
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: some)
    digit_folder(tmp_path / "photos", classes=2, train=2, val=1)
    torch.save(timm.create_model("deit_small_patch16_224").state_dict(), tmp_path / "deit_small.pth")
    monkeypatch.chdir(tmp_path)
    with drawing():
        yield tmp_path


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


def quick(words: list[str]) -> list[str]:
    """What makes a command smaller: smaller images for the DeiT, fewer for a training, fewer turns of a clock."""
    if "deit_small_patch16_224" in words:
        return ["--img-size", "64"]
    if "swin_digits" in words and "--finetune-epochs" in words:
        return ["--train-images", "64"]
    return ["--rounds", "20", "--batches", "2"] if words[1] == "bench" else []


@pytest.mark.usefixtures("quick_bench")
def test_commands_and_code_run(slimvit_: Callable[..., Any], work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = [words for words in COMMANDS if words[0] == "slimvit"]
    assert len(ran) >= 10
    for words in ran:
        assert slimvit_(*words[1:], *quick(words)).stdout.strip(), words
        if words[1:3] == ["recipes", "copy"]:  # copied to be edited: fewer images
            edit(work / words[-1])
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    top1, macs = capsys.readouterr().out.splitlines()[-2:]
    assert float(top1) > 90 and int(macs.split()[1]) < int(macs.split()[0])
    for words in ran:
        assert "--out" not in words or (work / words[words.index("--out") + 1]).exists()


def test_other_commands_are_known() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for words in COMMANDS:
        if words[0] == "make":
            assert words[1:] and set(words[1:]) <= set(targets), words
        elif words[0] in ("accelerate", "torchrun"):  # test_distributed.py launches; here, that the words are ours
            name, *rest = words[words.index("slimvit") + 1 :]
            assert main.get_command(click.Context(main), name).make_context(name, rest).params["out"]
        else:
            assert words[0] == "slimvit" or words == ["pip", "install", "."], words


def test_files_named_in_the_readme_exist() -> None:
    named = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(
        r"`(?:python )?((?:benchmarks|docs)/[\w/.]+)`", README
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
