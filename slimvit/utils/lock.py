"""One writer at a time works on an output folder or file, and what killed ones left of theirs is put right."""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slimvit.utils.errors import StoreError
from slimvit.utils.files import check_parent, disk_errors
from slimvit.utils.progress import is_main, log

try:
    import fcntl
except ImportError:  # Windows has another kind of lock; there, two commands on one folder are not told apart
    fcntl = None  # type: ignore[assignment]

ASIDE = "slimvit-"
"""How the random part of a name begins under which something is written before it takes its place."""
OLD = ".old"
UNFINISHED = "unfinished"
"""Subfolder of a run folder in which a training under way keeps what it needs to go on."""
TRIES = 3
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""What a file system answers that knows no locks."""

_held: dict[tuple[int, Path], int] = {}
"""The lock's descriptor, by thread and place."""


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Keep every other process and thread of slimvit from writing to `target` while the block runs; the thread that
    has claimed it may do so again.

    The lock is the system's own on a file beside `target`, so it ends with the process, however that ends; forked
    children have no share in it. Between machines it holds where the file system's locks do (NFS 4, not every other
    one). Raises `StoreError` when another has it, or where nothing can be written.
    """
    place = target.absolute()
    key = threading.get_ident(), place
    if key in _held:
        yield
        return
    if fcntl is None:
        place.parent.mkdir(parents=True, exist_ok=True)
        yield
        return
    check_parent(target)
    missing = [folder for folder in (place, *place.parents) if not folder.exists()]
    with disk_errors(target):
        _held[key] = _take_lock(place, target)
    try:
        with disk_errors(target):
            _put_right(place)
        yield
    finally:
        if (descriptor := _held.pop(key, None)) is not None:  # otherwise this is a forked child
            with suppress(OSError):
                _lock_of(place).unlink()
            os.close(descriptor)
            for folder in missing:  # that are empty still
                with suppress(OSError):
                    folder.rmdir()


def clean_up(target: Path) -> None:
    """Put right what a killed process left of `target`, before it is read by a command that will write to it."""
    if is_main() and stale_files(target) and lock_owner(target) is None:
        with locked(target):
            pass


def lock_owner(target: Path) -> str | None:
    """Who is writing to `target` now, in words; None where nobody is."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(_lock_of(target.absolute()), os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _who(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def stale_files(target: Path) -> list[Path]:
    """The lock of `target`, and what was written aside of it or of the state of its training."""
    place = target.absolute()
    lock = _lock_of(place)
    return [left for part in (place, place / UNFINISHED) for left in _aside_of(part)] + [lock] * lock.exists()


def _forget() -> None:
    """In a forked child: let go of its parent's locks, which would outlive the parent in it."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _lock_of(place: Path) -> Path:
    return place.with_name(f".{place.name}.lock")


def _take_lock(place: Path, target: Path) -> int:
    lock = _lock_of(place)
    for last in (*[False] * TRIES, True):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another process made the parent, and took it away again
            if last:
                raise
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(descriptor, lock):  # and not the file that the one before us has just taken away
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except BlockingIOError:
            if last:
                message = f"{_who(descriptor)} is writing to it; wait until that is done, or name another --out"
                os.close(descriptor)
                raise StoreError(f"{target}: {message}") from None
            time.sleep(0.02)  # it may only have been looked at
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
            log(f"{target}: its file system has no locks; see to it that no other command writes there meanwhile")
            return descriptor
        os.close(descriptor)
    raise StoreError(f"{target}: other commands begin and end there all the time; name another --out")


def _who(descriptor: int) -> str:
    number = os.pread(descriptor, 20, 0).decode(errors="replace")
    if number == str(os.getpid()):
        return "another thread of this process"
    return f"process {number}" if number.isdigit() else "another command"


def _same(descriptor: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False


def _aside_of(place: Path) -> list[Path]:
    name = re.compile(rf"\.{re.escape(place.name)}\.{ASIDE}\w+(\.\w+)?")
    return sorted(p for p in place.parent.iterdir() if name.fullmatch(p.name)) if place.parent.is_dir() else []


def _put_right(place: Path) -> None:
    """Only the holder of the lock writes aside, so whatever lies there was left by a process that is gone."""
    for target in (place, place / UNFINISHED):
        for left in _aside_of(target):
            if left.suffix == OLD and not target.exists():  # killed between the two renames of an exchange
                left.rename(target)
            elif left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()
