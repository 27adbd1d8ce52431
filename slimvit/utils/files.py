"""What the system does with files: errors in words, writing that is on the disk, two folders exchanged at once."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slimvit.utils.errors import DiskError, StoreError

HERE, EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""


def disk_error(target: Path, error: OSError) -> DiskError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(f"{target}: the disk is full; nothing was written. Free some space or name another folder")
    return DiskError(f"{target}: cannot be written: {error.strerror or error}")


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Raise :class:`DiskError` for what goes wrong while ``target`` is being written."""
    try:
        yield
    except OSError as error:
        raise disk_error(target, error) from None


def check_parent(target: Path) -> None:
    """Raise :class:`StoreError` where nothing can be put."""
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
