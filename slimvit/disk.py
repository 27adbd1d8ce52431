"""What the system does with files: errors in words, writing that is on the disk, two folders exchanged at once."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from slimvit.errors import StoreError

HERE, EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""


def disk_error(target: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"{target}: the disk is full; nothing was written. Free some space or name another folder")
    return StoreError(f"{target}: cannot be written: {error.strerror or error}")


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
