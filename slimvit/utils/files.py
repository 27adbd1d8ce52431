"""Writes to files: atomic, with disk errors in one line.

Writes follow no links: `replacing` and `write_whole` write a new file under a random name and rename it, so that a link
under the final name is replaced.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slimvit.utils.errors import DiskError, StoreError
from slimvit.utils.reading import NO_LINK, Unreadable, is_regular, open_regular

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Constants of Linux's `renameat2`."""
MOST_COPIED = 2**30
"""Bytes that a copied folder may have."""
ASIDE = "slimvit-"
"""Prefix of the random part of a temporary name."""


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


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a new file beside `target`, which replaces it after the block, or is removed if the block fails.

    The file has a random name and is created exclusively. A link under the name of `target` is replaced, not followed.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.{ASIDE}", suffix=target.suffix, dir=target.parent)
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        fsync_tree(partial)
        partial.replace(target)
    finally:
        with suppress(OSError):
            partial.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically: a killed process leaves the old content or the new."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def check_no_link(*paths: Path) -> None:
    """Raise `StoreError` for a path that is a link, before something is written through it."""
    for path in paths:
        if path.is_symlink():
            raise StoreError(
                f"{path}: is a link, and slimvit writes through no link; put what it points to in its place"
            )


def user_cache() -> Path | None:
    """Return slimvit's folder in an absolute `$XDG_CACHE_HOME` or `~/.cache`; None for a user without a home."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (given if given.is_absolute() else Path.home() / ".cache") / "slimvit"
    except RuntimeError:
        return None


def fsync_tree(folder: Path) -> None:
    """Flush a file or a folder with its content to the disk, so that a rename after it survives a power cut."""
    for path in (*folder.rglob("*"), folder):
        if is_regular(path) or path.is_dir():
            descriptor = os.open(path, os.O_RDONLY | NO_LINK)
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


def copy_files(source: Path, target: Path, most: int = MOST_COPIED) -> list[Path]:
    """Copy a folder's regular files, as many as have `most` bytes together, and return what was left out.

    Links are neither followed nor copied, nor are pipes and devices.
    """
    left_out: list[Path] = []
    target.mkdir()
    for entry in sorted(source.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            left_out += copy_files(entry, target / entry.name, most - _size(target))
            continue
        try:
            with open_regular(entry, most - _size(target)) as file, (target / entry.name).open("xb") as copy:
                shutil.copyfileobj(file, copy)
        except Unreadable:
            left_out.append(entry)
    return left_out


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if is_regular(path))
