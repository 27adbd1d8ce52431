"""Sweep folders: points/ID/ holds one run each, points.json lists them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slimvit.config.sweep import PublishedFigure
from slimvit.utils.errors import StoreError
from slimvit.utils.files import write_whole
from slimvit.utils.reading import Unreadable, read_json

FORMAT_VERSION = 1
CONTENTS, POINTS, SWEEP = "points.json", "points", "sweep.yaml"


class Entry(BaseModel):
    """One point of a sweep: done, failed or pending."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]*$")
    """Name of the run folder in points/."""
    name: str
    """Name in tables, the same for points that differ only in the seed."""
    error: str | None = None
    """The error in one line; failed/ID.txt holds the traceback."""


class Contents(BaseModel):
    """The content of points.json."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format_version: int = FORMAT_VERSION
    points: list[Entry]
    claims: list[PublishedFigure] = Field(default_factory=list)
    commits: dict[str, str] = Field(default_factory=dict)
    """Maps Hub names without a commit to the names with the commit of the sweep's first call."""


def is_sweep_folder(folder: Path) -> bool:
    """Return whether a folder holds a sweep."""
    return (folder / CONTENTS).is_file()


def point_folder(sweep: Path, id: str) -> Path:
    """Return the run folder of a point."""
    return sweep / POINTS / id


def read_contents(folder: Path) -> Contents:
    """Read points.json.

    Raises:
        StoreError: The folder holds no sweep of this format.
    """
    path = folder / CONTENTS
    try:
        data: Any = read_json(path)
        if isinstance(data, dict) and data.get("format_version") != FORMAT_VERSION:
            version = f"format_version is {data.get('format_version')!r}, this slimvit reads {FORMAT_VERSION}"
            raise StoreError(f"{path}: {version}; use the slimvit that wrote it, or sweep again")
        return Contents.model_validate(data)
    except FileNotFoundError:
        raise StoreError(f"{folder}: holds no sweep; give the folder that `slimvit sweep` wrote") from None
    except (Unreadable, ValidationError) as error:
        raise StoreError(f"{path}: damaged: {' '.join(str(error).split())}; call the sweep again") from None


def write_contents(folder: Path, contents: Contents) -> None:
    """Write points.json in one step."""
    write_whole(folder / CONTENTS, json.dumps(contents.model_dump(mode="json"), indent=1) + "\n")
