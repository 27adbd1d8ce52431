"""Bounded reads of text, JSON and YAML. What cannot be read raises `Unreadable` with the reason in one line."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from slimvit.utils.errors import SlimvitError

MOST = 64 * 2**20
"""Largest text file that is read, in bytes."""
MERGE = "tag:yaml.org,2002:merge"
"""YAML's tag of the key `<<`."""
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
"""Flags of `os.open` with which it neither follows a link nor waits for the other end of a pipe."""


class Unreadable(Exception):
    """A file cannot be read. The message is one line without the name of the file."""


def is_regular(path: Path) -> bool:
    """Whether a path is a file itself: no link, folder, pipe or device."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def open_regular(path: Path, most: int) -> BinaryIO:
    """Open a file whose content leaves this machine or its folder.

    Raises:
        Unreadable: It is a link, a folder, a pipe or a device, or has more than `most` bytes.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | NO_LINK), "rb")
    except OSError as error:
        raise Unreadable("it is a link" if error.errno == errno.ELOOP else shortened(error)) from None
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and found.st_size <= most:
        return file
    file.close()
    raise Unreadable(
        f"it has {found.st_size:,} bytes, at most {most:,} are taken"
        if stat.S_ISREG(found.st_mode)
        else "it is not a regular file"
    )


@contextmanager
def read_errors(error: type[SlimvitError], *, missing: str, unreadable: str) -> Iterator[None]:
    """Raise `error` for a file that cannot be read in the block.

    Args:
        error: The class to raise.
        missing: Message for a missing file.
        unreadable: Message for `Unreadable`, whose reason is appended.
    """
    try:
        yield
    except FileNotFoundError:
        raise error(missing) from None
    except Unreadable as reason:
        raise error(f"{unreadable}: {reason}") from None


def check_regular(path: Path) -> None:
    """Raise `Unreadable` for a folder, a pipe or a device. Links are followed."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise Unreadable("it is not a regular file")


def read_text(path: Path, most: int = MOST) -> str:
    """Read a UTF-8 text file; raises `FileNotFoundError`, and `Unreadable` for any other failure."""
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
        raise Unreadable(shortened(error)) from None


def read_json(path: Path) -> Any:
    """Read a JSON file; raises as `read_text` does, and `Unreadable` for a key given twice."""
    text = read_text(path)
    try:
        return _encodable(json.loads(text, object_pairs_hook=_each_key_once), text)
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except ValueError as error:  # no JSON, or a number with too many digits for Python
        raise Unreadable(shortened(error)) from None


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain data; raises as `read_text` does.

    Aliases are refused, since a few lines of them can expand beyond any memory, and so is a key given twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                alias = self.peek_event()
                raise Unreadable(
                    f"line {alias.start_mark.line + 1}: aliases (*{alias.anchor}) are not allowed; write the value out"
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            lines: dict[Any, int] = {}
            for key, _ in node.value:
                name = key.value if key.tag == MERGE else self.construct_object(key, deep=True)
                line = key.start_mark.line + 1
                if isinstance(name, Hashable) and name in lines:
                    raise Unreadable(f"line {line}: {name} is given twice, first in line {lines[name]}; remove one")
                lines |= {name: line} if isinstance(name, Hashable) else {}
            return super().construct_mapping(node, deep)

    text = read_text(path)
    try:
        return _encodable(yaml.load(text, Loader), text)  # a SafeLoader
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise Unreadable(shortened(error)) from None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping of a JSON object; raises `Unreadable` for a key given twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Unreadable(f"{next(k for k in keys if keys.count(k) > 1)[:60]!r} is given twice; remove one")
    return content


def _encodable(content: Any, text: str) -> Any:
    """Return `content`; raises `ValueError` for an unpaired surrogate in it, which cannot be written or printed."""
    if "\\ud" in text.lower():
        json.dumps(content, ensure_ascii=False, default=str).encode()
    return content


def shortened(error: Exception) -> str:
    """Return what an error says, on one line of at most 300 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300]
