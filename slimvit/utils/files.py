"""Files: disk errors in one line, atomic writes, and bounded reads of text, JSON and YAML."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slimvit.utils.errors import DiskError, StoreError

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Constants of Linux's `renameat2`."""
MOST = 64 * 2**20
"""Largest text file that is read, in bytes."""


def disk_error(target: Path, error: OSError) -> DiskError:
    """Return the one-line error for a failed write to `target`; a full disk has a line of its own."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(f"{target}: the disk is full; nothing was written. Free some space or name another folder")
    return DiskError(f"{target}: cannot be written: {error.strerror or error}")


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Raise `DiskError` for an `OSError` of the block, which writes `target`."""
    try:
        yield
    except OSError as error:
        raise disk_error(target, error) from None


def check_parent(target: Path) -> None:
    """Raise `StoreError` if `target` cannot be created, because a parent is a file or not writable."""
    parent = next(p for p in target.absolute().parents if p.exists())
    if not parent.is_dir():
        raise StoreError(f"{target}: {parent} is a file; name another folder for --out")
    if not os.access(parent, os.W_OK):
        raise StoreError(f"{target}: {parent} is not writable; name another folder for --out")


def write_whole(path: Path, text: str) -> None:
    """Write a small file atomically: a killed process leaves the old content or the new."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def fsync_tree(folder: Path) -> None:
    """Flush a file or a folder with its content to the disk, so that a rename after it survives a power cut."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one step; return False, without a change, where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # no Linux, or no glibc
        return False
    return rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


class Unreadable(Exception):
    """A file cannot be read. The message is one line without the name of the file."""


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
        raise Unreadable(_line(error)) from None


def read_json(path: Path) -> Any:
    """Read a JSON file; raises as `read_text` does."""
    text = read_text(path)
    try:
        return _encodable(json.loads(text), text)
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except ValueError as error:  # no JSON, or a number with too many digits for Python
        raise Unreadable(_line(error)) from None


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain data; raises as `read_text` does.

    Aliases are refused, since a few lines of them can expand beyond any memory.
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

    text = read_text(path)
    try:
        return _encodable(yaml.load(text, Loader), text)  # a SafeLoader
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise Unreadable(_line(error)) from None


def _encodable(content: Any, text: str) -> Any:
    """Return `content`; raises `ValueError` for an unpaired surrogate in it, which cannot be written or printed."""
    if "\\ud" in text.lower():
        json.dumps(content, ensure_ascii=False, default=str).encode()
    return content


def _line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300]
