"""Files: disk errors in one line, atomic writes, and bounded reads of text, JSON and YAML.

Writes follow no links: `replacing` and `write_whole` write a new file under a random name and rename it, so that a link
under the final name is replaced.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from slimvit.utils.errors import DiskError, SlimvitError, StoreError

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Constants of Linux's `renameat2`."""
MOST = 64 * 2**20
"""Largest text file that is read, in bytes."""
MERGE = "tag:yaml.org,2002:merge"
"""YAML's tag of the key `<<`."""
MOST_COPIED = 2**30
"""Bytes that a copied folder may have."""
ASIDE = "slimvit-"
"""Prefix of the random part of a temporary name."""
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
"""Flags of `os.open` with which it neither follows a link nor waits for the other end of a pipe."""


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
        raise Unreadable("it is a link" if error.errno == errno.ELOOP else _line(error)) from None
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and found.st_size <= most:
        return file
    file.close()
    raise Unreadable(
        f"it has {found.st_size:,} bytes, at most {most:,} are taken"
        if stat.S_ISREG(found.st_mode)
        else "it is not a regular file"
    )


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
        raise Unreadable(_line(error)) from None


def read_json(path: Path) -> Any:
    """Read a JSON file; raises as `read_text` does, and `Unreadable` for a key given twice."""
    text = read_text(path)
    try:
        return _encodable(json.loads(text, object_pairs_hook=_each_key_once), text)
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except ValueError as error:  # no JSON, or a number with too many digits for Python
        raise Unreadable(_line(error)) from None


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
        raise Unreadable(_line(error)) from None


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


def _line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300]
