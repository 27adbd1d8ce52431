"""Everything that is wrong with a recipe file, at once: keys and values that are refused, and what contradicts what."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from slimvit.config.training import FIELDS_ALONE, Section
from slimvit.utils.errors import closest, nearest

ROUNDS = 4
"""A wrong section goes, is missing then, is empty then, and lacks its name then."""


def defects_of(kind: type[Section], data: dict[str, Any]) -> list[str]:
    """One clause a defect: the key's path, what is wrong, the nearest known key. Nothing for a file without defects.

    A contradiction that hangs on a key which is refused itself is left out: it may not be one.
    """
    told: list[ErrorDetails] = []
    clauses: list[str] = []
    for _ in range(ROUNDS):
        try:
            whole = kind.model_validate(data, context=FIELDS_ALONE)
        except ValidationError as error:
            told, data = told or error.errors(), _without(kind, data, error.errors())
        else:
            clauses = [c for path, section in _sections(whole) for c in _contradictions(kind, section, path, told)]
            break
    return list(dict.fromkeys([_clause(kind, item) for item in told] + clauses))


def _clause(kind: type[Section], item: ErrorDetails) -> str:
    path = _path(item)
    name = ".".join(path)
    if item["type"] == "extra_forbidden":
        known = _known(kind, path)
        hint = nearest(path[-1], known, 1) or f"; known: {', '.join(known)}"
        return f"unknown key {name}{hint}"
    if item["type"] == "missing":
        return f"{name} is missing"
    return f"{name} is {item['input']!r}, but {item['msg'].replace('Input should be', 'must be')}"


def _contradictions(kind: type[Section], section: Section, path: list[str], told: list[ErrorDetails]) -> list[str]:
    """The contradictions of a section that stands at `path`, without those that name a key in doubt."""
    doubtful = {word for item in told if _path(item)[: len(path)] == path for word in _words(kind, item)}
    clear = [c for c in section.contradictions() if not doubtful & set(re.findall(r"\w+", c))]
    return [": ".join(filter(None, (".".join(path), clause))) for clause in clear]


def _words(kind: type[Section], item: ErrorDetails) -> list[str]:
    """A refused key, and the known one that was probably meant."""
    path = _path(item)
    return [path[-1], *(closest(path[-1], _known(kind, path), 1) if item["type"] == "extra_forbidden" else ())]


def _sections(section: Section, path: tuple[str, ...] = ()) -> Iterator[tuple[list[str], Section]]:
    """A section's own ones, with their places, and then itself."""
    for name, value in section:
        if isinstance(value, Section):
            yield from _sections(value, (*path, name))
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, Section):
                    yield from _sections(item, (*path, name, str(i)))
    yield list(path), section


def _without(kind: type[Section], data: dict[str, Any], items: list[ErrorDetails]) -> dict[str, Any]:
    """A copy in which the refused keys are left out and the missing ones made up, so that the rest can be judged."""
    rest = copy.deepcopy(data)
    for item in items:
        place: Any = rest
        *way, key = _path(item)
        for step in way:
            if not isinstance(place.get(step), dict):
                key = step  # one element of a list is wrong: the list goes
                break
            place = place[step]
        for found in [k for k in place if str(k) == key]:  # a key may be a number
            del place[found]
        if item["type"] == "missing":
            place[key] = {} if _section_at(kind, [*way, key]) else ""
    return rest


def _path(item: ErrorDetails) -> list[str]:
    return [str(part) for part in item["loc"] if part not in ("int", "list[int]", "[key]")]


def _known(kind: type[Section], path: list[str]) -> list[str]:
    """The keys that could stand where the last of a path does."""
    section = _section_at(kind, path[:-1])
    return [] if section is None else list(section.model_fields)


def _section_at(kind: type[Section], path: list[str]) -> type[Section] | None:
    """The kind of section at a path; None where something else is."""
    found: type[Section] | None = kind
    for key in path:
        if key.isdigit():  # a place in a list, whose items are sections of one kind
            continue
        field = None if found is None else found.model_fields.get(key)
        choices = () if field is None else (field.annotation, *get_args(field.annotation))
        found = next((t for t in choices if isinstance(t, type) and issubclass(t, Section)), None)
    return found
