"""The data that this user's commands have opened. Data that a folder names is opened without --data only if known.

A folder may come from anybody, so its recipe is no order to open a place on this machine. What a command of the user
has opened before is noted in the user's cache folder.
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
"""Options of the command line, by the keys of a data section that say what is opened."""


def remember_data(section: DataSection) -> None:
    """Note that the user's command has opened this data."""
    entry = _entry(section)
    if entry is not None and not entry.is_file():
        with suppress(OSError):  # without the note the user is asked for --data
            entry.parent.mkdir(parents=True, exist_ok=True)
            write_whole(entry, json.dumps(_facts(section), indent=1) + "\n")


def check_known_data(section: DataSection, folder: str | Path, given: Collection[str] = ()) -> None:
    """Check the data that the recipe in `folder` names, before it is opened.

    Args:
        section: The data section of the recipe, with the options of the command.
        folder: The folder, for errors.
        given: The keys of the section that are options of the command.

    Raises:
        DataError: No command of the user has opened the data on this machine, and the command does not name it.
    """
    if not _is_known(section) and _keys(section) - {*given}:
        raise DataError(
            f"{folder}: its recipe names data that no command of yours has opened on this machine; to open it, add "
            f"{shlex.join(_options(section))}"
        )


def missing_options(section: DataSection) -> list[str]:
    """Return the options without which `check_known_data` would refuse the data; none for known data."""
    return [] if _is_known(section) else _options(section)


def _is_known(section: DataSection) -> bool:
    entry = _entry(section)
    return section.name == EMBEDDED or (entry is not None and entry.is_file())


def _entry(section: DataSection) -> Path | None:
    cache = user_cache()
    return None if cache is None else cache / "data" / f"{fingerprint(_facts(section))}.json"


def _facts(section: DataSection) -> dict[str, str | None]:
    """What is opened, with absolute paths: a relative one means another folder elsewhere."""
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
    """`--data photos/`, and the other options that say what is opened where they differ from the defaults."""
    return [word for key in FLAGS if key in _keys(section) for word in (FLAGS[key], getattr(section, key))]


def _keys(section: DataSection) -> set[str]:
    """The keys that say what is opened, where they differ from the defaults."""
    return {key for key in FLAGS if getattr(section, key) != type(section).model_fields[key].default}
