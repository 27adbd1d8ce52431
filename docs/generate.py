"""The generated blocks of the documentation: a page calls a function in a comment that begins with `[[[cog`.

make reference        # writes every block again
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import griffe
from click.testing import CliRunner
from pydantic import BaseModel

import slimvit
from slimvit.cli import COMMANDS, main
from slimvit.config import recipe, shipped, sweep
from slimvit.config.choices import Words

ROOT = Path(__file__).parents[1]
PACKAGE = griffe.load("slimvit", search_paths=[str(ROOT)])
RECIPE_SECTIONS = ("model", "data", "adapt", "prune", "refit", "dense", "finetune")


def example(name: str) -> None:
    """An example file, as a code block."""
    fenced("python", (ROOT / "docs/extend/examples" / f"{name}.py").read_text())


def recipe_file(name: str) -> None:
    """A shipped recipe, as a code block."""
    fenced("yaml", shipped.recipe_path(name).read_text())


def fenced(language: str, text: str) -> None:
    print(f"\n```{language}\n{text.rstrip()}\n```\n")


def cli() -> None:
    """The help of every command as the terminal shows it."""
    for name, summary in COMMANDS.items():
        command = main.get_command(None, name)  # type: ignore[arg-type]
        print(f"\n## slimvit {name}\n\n{summary}")
        fenced("text", _help(name))
        for inner in getattr(command, "commands", {}):
            print(f"\n### slimvit {name} {inner}")
            fenced("text", _help(name, inner))


def _help(*words: str) -> str:
    result = CliRunner().invoke(main, [*words, "--help"], prog_name="slimvit", terminal_width=100)
    assert result.exit_code == 0, result.output
    return result.output


def recipe_keys() -> None:
    """A table for each section of a recipe, and one for the sweep file."""
    for name in RECIPE_SECTIONS:
        _section(f"`{name}:`", recipe.Recipe.model_fields[name].annotation)
    _section("Keys outside the sections", recipe.Recipe, skip=RECIPE_SECTIONS)
    _section("The sweep file", sweep.Sweep)
    _section("`points:` of a sweep", sweep.NamedPoint)
    _section("`claims:` of a sweep", sweep.PublishedFigure)


def _section(title: str, model: Any, skip: tuple[str, ...] = ()) -> None:
    documented = _documented(model)
    print(f"\n## {title}\n\n{_summary(_griffe_of(model))}\n")
    print("| key | type | default | meaning |\n| --- | --- | --- | --- |")
    for name, field in model.model_fields.items():
        if name not in skip:
            default = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
            kind = _words(field.metadata) or _type(field.annotation)
            print(f"| `{name}` | {kind} | {default} | {documented.get(name, '')} |")


def _griffe_of(model: type) -> Any:
    return PACKAGE[f"{model.__module__}.{model.__qualname__}".removeprefix("slimvit.")]


def _documented(model: type) -> dict[str, str]:
    """The docstring under each field, of the class and of what it derives from."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base.__module__.startswith("slimvit"):
            members = _griffe_of(base).members.items()
            found |= {name: _text(member.docstring.value) for name, member in members if member.docstring}
    return found


def _text(docstring: str) -> str:
    return " ".join(docstring.split()).replace("|", "\\|")


def _value(value: Any) -> str:
    """A default as YAML writes it."""
    if value is None or isinstance(value, BaseModel):
        return ""
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any value"}


def _type(annotation: Any) -> str:
    """A type in the words of somebody who writes YAML."""
    origin, arguments = get_origin(annotation), [a for a in get_args(annotation) if a is not type(None)]
    if origin in (Union, types.UnionType):
        return " or ".join(map(_type, arguments))
    if origin is Annotated:
        return _words(annotation.__metadata__) or _type(annotation.__origin__)
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    return NAMES.get(annotation, "mapping")


def _words(metadata: Iterable[Any]) -> str:
    """The words of an open set, which plugins may add to; empty where there is none."""
    return next((", ".join(f"`{word}`" for word in item) for item in metadata if isinstance(item, Words)), "")


def api_table() -> None:
    """Every public name with the first line of its docstring."""
    print("\n| name | what it does |\n| --- | --- |")
    for name, path in _public():
        print(f"| [`{name}`](#{path}) | {_summary(PACKAGE[path.removeprefix('slimvit.')])} |")
    print()


def api() -> None:
    """Where mkdocstrings writes the reference of every public name."""
    for name, path in _public():
        print(f"\n::: {path}\n    options:\n      heading: slimvit.{name}\n      toc_label: {name}")
    print()


def _public() -> list[tuple[str, str]]:
    """The public names in alphabetical order, and where each is defined; a package may have the name of a function."""
    return [(name, f"slimvit.{slimvit._HOME[name]}.{name}") for name in sorted(slimvit.__all__, key=str.lower)]


def _summary(item: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return _text(item.docstring.value.split("\n\n")[0]) if item.docstring else ""
