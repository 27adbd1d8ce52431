"""YAML files checked against typed sections. All defects of a file are reported at once."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import Self

from slimvit.config.training import FIELDS_ALONE, Section
from slimvit.utils.errors import RecipeError, closest, nearest
from slimvit.utils.reading import read_errors, read_yaml

ROUNDS = 4
"""Rounds of repair: a wrong section is dropped, then added empty, then its missing name is added."""


class Document(Section):
    """The typed content of a YAML file."""

    kind: ClassVar[str]
    """Word for such a file, for errors."""
    begins_with: ClassVar[str]
    """Its first keys, for errors."""

    @classmethod
    def parse(cls, data: Any, source: str | None = None) -> Self:
        """Check plain data.

        Args:
            data: The content as dicts, lists and values.
            source: Name of the file, for errors.

        Raises:
            RecipeError: The data has defects; the message lists all of them.
        """
        source = source or cls.kind
        if not isinstance(data, dict):
            raise RecipeError(f"{source}: expected a mapping with {cls.begins_with}, found {type(data).__name__}")
        try:
            return cls.model_validate(data)
        except ValidationError:
            raise RecipeError(f"{source}: " + "; ".join(defects_of(cls, data))) from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a file; raises `RecipeError` where it is missing, no YAML, or has defects."""
        missing = f"{path}: no such {cls.kind}; `slimvit recipes list` names the shipped ones"
        with read_errors(RecipeError, missing=missing, unreadable=f"{path}: not readable as YAML"):
            data = read_yaml(path)
        return cls.parse(data, str(path))

    def to_yaml(self) -> str:
        """Return the content as YAML, defaults included."""
        import yaml

        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def defects_of(kind: type[Section], data: dict[str, Any]) -> list[str]:
    """Return one clause per defect: the key's path, what is wrong, the nearest known key.

    A contradiction that names a refused key is left out, since the refusal may be its cause.
    """
    refused: list[ErrorDetails] = []
    clauses: list[str] = []
    for _ in range(ROUNDS):
        try:
            content = kind.model_validate(data, context=FIELDS_ALONE)
        except ValidationError as error:
            refused, data = refused or error.errors(), _repaired(kind, data, error.errors())
        else:
            clauses = [c for path, section in _sections(content) for c in _contradictions(kind, section, path, refused)]
            break
    return list(dict.fromkeys([_clause(kind, item) for item in refused] + clauses))


def _clause(kind: type[Section], item: ErrorDetails) -> str:
    path = _path(item)
    name = ".".join(path)
    if item["type"] == "extra_forbidden":
        known = _keys_at(kind, path)
        hint = nearest(path[-1], known, 1) or f"; known: {', '.join(known)}"
        return f"unknown key {name}{hint}"
    if item["type"] == "missing":
        return f"{name} is missing"
    return f"{name} is {item['input']!r}, but {item['msg'].replace('Input should be', 'must be')}"


def _contradictions(kind: type[Section], section: Section, path: list[str], refused: list[ErrorDetails]) -> list[str]:
    """The contradictions of the section at `path`, without those that name a refused key."""
    doubtful = {word for item in refused if _path(item)[: len(path)] == path for word in _words(kind, item)}
    clear = [c for c in section.contradictions() if not doubtful & set(re.findall(r"\w+", c))]
    return [": ".join(filter(None, (".".join(path), clause))) for clause in clear]


def _words(kind: type[Section], item: ErrorDetails) -> list[str]:
    """A refused key, and the known key closest to it."""
    path = _path(item)
    return [path[-1], *(closest(path[-1], _keys_at(kind, path), 1) if item["type"] == "extra_forbidden" else ())]


def _sections(section: Section, path: tuple[str, ...] = ()) -> Iterator[tuple[list[str], Section]]:
    """The sections inside a section with their paths, then the section itself."""
    for name, value in section:
        if isinstance(value, Section):
            yield from _sections(value, (*path, name))
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, Section):
                    yield from _sections(item, (*path, name, str(i)))
    yield list(path), section


def _repaired(kind: type[Section], data: dict[str, Any], items: list[ErrorDetails]) -> dict[str, Any]:
    """A copy of `data` without the refused keys and with values for missing ones, so that the rest can be checked."""
    rest = copy.deepcopy(data)
    for item in items:
        section: Any = rest
        *parents, key = _path(item)
        for parent in parents:
            if not isinstance(section.get(parent), dict):
                key = parent  # one element of a list is wrong: drop the list
                break
            section = section[parent]
        for match in [k for k in section if str(k) == key]:  # a key may be a number
            del section[match]
        if item["type"] == "missing":
            section[key] = {} if _section_at(kind, [*parents, key]) else ""
    return rest


def _path(item: ErrorDetails) -> list[str]:
    return [str(part) for part in item["loc"] if part not in ("int", "list[int]", "[key]")]


def _keys_at(kind: type[Section], path: list[str]) -> list[str]:
    """The known keys in the place of the last key of a path."""
    section = _section_at(kind, path[:-1])
    return [] if section is None else list(section.model_fields)


def _section_at(kind: type[Section], path: list[str]) -> type[Section] | None:
    """The type of the section at a path; None where there is no section."""
    section: type[Section] | None = kind
    for key in path:
        if key.isdigit():  # position in a list, whose items are sections of one type
            continue
        field = None if section is None else section.model_fields.get(key)
        choices = () if field is None else (field.annotation, *get_args(field.annotation))
        section = next((t for t in choices if isinstance(t, type) and issubclass(t, Section)), None)
    return section
