"""What the system does with files: errors in words, writing that is on the disk, two folders exchanged at once."""

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

HERE, EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""


def disk_error(target: Path, error: OSError) -> DiskError:
    """Return the one-line error for a failed write to `target`; a full disk has a line of its own."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(f"{target}: the disk is full; nothing was written. Free some space or name another folder")
    return DiskError(f"{target}: cannot be written: {error.strerror or error}")


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Raise `DiskError` for what goes wrong while `target` is being written."""
    try:
        yield
    except OSError as error:
        raise disk_error(target, error) from None


def check_parent(target: Path) -> None:
    """Raise `StoreError` where nothing can be put."""
    parent = next(p for p in target.absolute().parents if p.exists())
    if not parent.is_dir():
        raise StoreError(f"{target}: {parent} is a file; name another folder for --out")
    if not os.access(parent, os.W_OK):
        raise StoreError(f"{target}: {parent} is not writable; name another folder for --out")


def write_whole(path: Path, text: str) -> None:
    """A small file that is as before or as it should be, whenever the process ends."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def settle(folder: Path) -> None:
    """Write a folder out to the disk: named only after that, it is there whole after a power cut, or not at all."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one step; False, and nothing done, where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or not glibc
        return False
    return rename(HERE, os.fsencode(one), HERE, os.fsencode(other), EXCHANGE) == 0


MOST = 64 * 2**20
"""Bytes of a text file at most; the largest that slimvit writes, the points of a sweep, has a few hundred each."""


class Unreadable(Exception):
    """What is wrong with a file, in one line that does not name it."""


def check_regular(path: Path) -> None:
    """Raise `Unreadable` for what cannot be read to its end: a folder, a pipe, a device. Links are followed."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise Unreadable("it is no ordinary file")


def read_text(path: Path, most: int = MOST) -> str:
    """Raises `FileNotFoundError`, and `Unreadable` for all else."""
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
    """The content of a JSON file. Raises as `read_text` does."""
    text = read_text(path)
    try:
        return _writable(json.loads(text), text)
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except ValueError as error:  # no JSON, or a number of more digits than Python takes
        raise Unreadable(_line(error)) from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, plain data only, without aliases: a few lines of those can stand for more than any
    memory holds. Raises as `read_text` does."""
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
    """`found`, unless an escape in `text` gave half a pair of surrogates, which nothing can write or show again."""
    if "\\ud" in text.lower():
        json.dumps(found, ensure_ascii=False, default=str).encode()
    return found


def _line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300]
