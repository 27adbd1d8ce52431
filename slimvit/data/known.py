"""Known data: data sets that this user's commands have opened, recorded in the user's cache folder.

A received recipe could name any folder of this machine. Its data is opened without --data only if it is known.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from slimvit.config.data_names import prefix_of
from slimvit.config.recipe import DataSection
from slimvit.utils.errors import DataError
from slimvit.utils.files import user_cache, write_whole
from slimvit.utils.output import fingerprint

EMBEDDED = "digits"
FLAGS = {"name": "--data", "root": "--data-root", "train_split": "--train-split", "val_split": "--val-split"}
"""Keys of a data section that determine what is opened -> options of the command line."""


def remember_data(section: DataSection) -> None:
    """Record data that a command of the user has opened."""
    entry = _entry(section)
    if entry is not None and not entry.is_file():
        with suppress(OSError):  # without the record the user is asked for --data
            entry.parent.mkdir(parents=True, exist_ok=True)
            write_whole(entry, json.dumps(_opened(section), indent=1) + "\n")


def check_known_data(section: DataSection, folder: str | Path, given: Collection[str] = ()) -> None:
    """Refuse unknown data of a recipe, before it is opened.

    Args:
        section: Data section of the recipe, updated by the options of the command.
        folder: Folder of the recipe, for messages.
        given: Keys of the section that the command gives.

    Raises:
        DataError: The data is not known, and the command does not name it.
    """
    if not _is_known(section) and _keys(section) - {*given}:
        raise DataError(
            f"{folder}: its recipe names data that no command of yours has opened on this machine; to open it, add "
            f"{shlex.join(_options(section))}"
        )


def missing_options(section: DataSection) -> list[str]:
    """Return the options with which `check_known_data` accepts the data; none for known data."""
    return [] if _is_known(section) else _options(section)


def _is_known(section: DataSection) -> bool:
    entry = _entry(section)
    return section.name == EMBEDDED or (entry is not None and entry.is_file())


def _entry(section: DataSection) -> Path | None:
    cache = user_cache()
    return None if cache is None else cache / "data" / f"{fingerprint(_opened(section))}.json"


def _opened(section: DataSection) -> dict[str, str | None]:
    """The keys of `FLAGS` with absolute paths, since a relative path depends on the working directory."""
    named = bool(prefix_of(section.name)) or section.name == EMBEDDED
    return {
        "name": section.name if named else _absolute(section.name),
        "root": None if section.root is None else _absolute(section.root),
        "train_split": section.train_split,
        "val_split": section.val_split,
    }


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _options(section: DataSection) -> list[str]:
    """`--data photos/`, and the other options of `FLAGS` that differ from the defaults."""
    return [word for key in FLAGS if key in _keys(section) for word in (FLAGS[key], getattr(section, key))]


def _keys(section: DataSection) -> set[str]:
    """The keys of `FLAGS` with values other than the defaults."""
    return {key for key in FLAGS if getattr(section, key) != type(section).model_fields[key].default}
