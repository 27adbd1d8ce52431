"""Open sets of words: the known ones, those of plugins, and the message for an unknown one."""

import importlib.metadata
from typing import Annotated, Any

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, ValidationError

from slimvit.cli.options import Word
from slimvit.config.choices import Words
from slimvit.utils import plugins


@pytest.fixture
def words() -> Words:
    return Words("onnx", "timm")


def test_an_unknown_word_is_met_with_the_known_ones_and_the_nearest(words):
    assert words.check("timm") == "timm"
    with pytest.raises(ValueError, match=r"^'onnx' or 'timm' \(did you mean timm\?\)$"):
        words.check("tim")


def test_a_word_that_is_added_is_known_everywhere(words):
    class Section(BaseModel):
        form: Annotated[str, words]

    @click.command()
    @click.option("--form", type=Word(words))
    def command(form):
        click.echo(form)

    with pytest.raises(ValidationError, match="Input should be 'onnx' or 'timm'"):
        Section(form="tflite")
    refused = CliRunner().invoke(command, ["--form", "tflite"])
    assert refused.exit_code == 2 and "'tflite' is not one of 'onnx' or 'timm'" in refused.output
    words.add("tflite")
    assert list(words) == ["onnx", "timm", "tflite"] and Section(form="tflite").form == "tflite"
    assert CliRunner().invoke(command, ["--form", "tflite"]).output == "tflite\n"
    assert "[onnx|timm|tflite]" in CliRunner().invoke(command, ["--help"]).output


def test_plugins_are_loaded_once_and_only_for_an_unknown_word(words, monkeypatch):
    loaded: list[str] = []

    class Entry:
        def load(self) -> Any:
            loaded.append("plugin")
            words.add("tflite")

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Entry()] * (group == "slimvit.plugins"))
    plugins.load_plugins.cache_clear()
    try:
        assert words.check("onnx") == "onnx" and loaded == []
        assert words.check("tflite") == "tflite"
        with pytest.raises(ValueError, match="'tflite'"):
            words.check("coreml")
        assert loaded == ["plugin"]
    finally:
        plugins.load_plugins.cache_clear()
