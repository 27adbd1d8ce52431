"""The folder of a sweep: points/ID/ is a run folder each, points.json tells which they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slimvit.config.sweep import PublishedFigure
from slimvit.utils.errors import StoreError
from slimvit.utils.files import Unreadable, read_json, write_whole

FORMAT_VERSION = 1
CONTENTS, POINTS, SWEEP = "points.json", "points", "sweep.yaml"


class Entry(BaseModel):
    """One point, carried out, failed or still to come."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]*$")
    """Its run folder is points/ID."""
    name: str
    """For people; alike for points that differ in nothing but the seed."""
    error: str | None = None
    """Why it failed, in one line; the whole story is in failed/ID.txt."""


class Contents(BaseModel):
    """points.json."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format_version: int = FORMAT_VERSION
    points: list[Entry]
    claims: list[PublishedFigure] = Field(default_factory=list)
    commits: dict[str, str] = Field(default_factory=dict)
    """Models on the Hub that the sweep names without a commit -> the name with the commit that they had when it was
    first called."""


def is_sweep_folder(folder: Path) -> bool:
    return (folder / CONTENTS).is_file()


def point_folder(sweep: Path, id: str) -> Path:
    return sweep / POINTS / id


def read_contents(folder: Path) -> Contents:
    """Raises :class:`StoreError` for a folder that is no sweep of this format."""
    path = folder / CONTENTS
    try:
        data: Any = read_json(path)
        if isinstance(data, dict) and data.get("format_version") != FORMAT_VERSION:
            told = f"format_version is {data.get('format_version')!r}, this slimvit reads {FORMAT_VERSION}"
            raise StoreError(f"{path}: {told}; use the slimvit that wrote it, or sweep again")
        return Contents.model_validate(data)
    except FileNotFoundError:
        raise StoreError(f"{folder}: holds no sweep; give the folder that `slimvit sweep` wrote") from None
    except (Unreadable, ValidationError) as error:
        raise StoreError(f"{path}: damaged: {' '.join(str(error).split())}; call the sweep again") from None


def write_contents(folder: Path, contents: Contents) -> None:
    write_whole(folder / CONTENTS, json.dumps(contents.model_dump(mode="json"), indent=1) + "\n")
