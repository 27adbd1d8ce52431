"""Files that anybody may have written: a bound on what is read, and one kind of error for all that can be wrong."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

MOST = 64 * 2**20
"""Bytes of a text file at most; the largest that slimvit writes, the points of a sweep, has a few hundred each."""


class Unreadable(Exception):
    """What is wrong with a file, in one line that does not name it."""


def check_regular(path: Path) -> None:
    """Raise :class:`Unreadable` for what cannot be read to its end: a folder, a pipe, a device. Links are followed."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise Unreadable("it is no ordinary file")


def read_text(path: Path, most: int = MOST) -> str:
    """Raises :class:`FileNotFoundError`, and :class:`Unreadable` for all else."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise Unreadable(f"it is longer than {most:,} bytes")
        return content.decode("utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(_line(error)) from None


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises as :func:`read_text` does."""
    text = read_text(path)
    try:
        return _writable(json.loads(text), text)
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except ValueError as error:  # no JSON, or a number of more digits than Python takes
        raise Unreadable(_line(error)) from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, plain data only, without aliases: a few lines of those can stand for more than any
    memory holds. Raises as :func:`read_text` does."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                alias = self.peek_event()
                raise Unreadable(
                    f"line {alias.start_mark.line + 1}: aliases (*{alias.anchor}) are not taken; write it out"
                )
            return super().compose_node(parent, index)

    text = read_text(path)
    try:
        return _writable(yaml.load(text, Loader), text)  # a SafeLoader
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise Unreadable(_line(error)) from None


def _writable(found: Any, text: str) -> Any:
    """``found``, unless an escape in ``text`` gave half a pair of surrogates, which nothing can write or show again."""
    if "\\ud" in text.lower():
        json.dumps(found, ensure_ascii=False, default=str).encode()
    return found


def _line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300]
