"""Locks of output folders and files: one writer at a time, and recovery from killed writers."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slimvit.utils.errors import StoreError
from slimvit.utils.files import ASIDE, check_parent, disk_errors
from slimvit.utils.progress import is_main, log
from slimvit.utils.reading import NO_LINK, is_regular

try:
    import fcntl
except ImportError:  # Windows has no fcntl, so two commands may write to one folder there
    fcntl = None  # type: ignore[assignment]

OLD = ".old"
"""Suffix of a folder that is being replaced."""
UNFINISHED = "unfinished"
"""Subfolder of a run folder with the state of a training to resume."""
TRIES = 3
"""Retries before a lock counts as held."""
LOCK_BYTES = 20
"""Largest lock file: it holds the number of a process."""
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""Error numbers of file systems without locks."""

_held: dict[tuple[int, Path], int] = {}
"""Descriptors of held locks, by thread and path."""


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of `target` during the block, and recover first what killed writers left of it.

    The lock excludes every other process and thread of slimvit; a thread may take its own locks again. It is a system
    lock on a file beside `target`, so it ends with the process, and forked children do not inherit it. Between
    machines it needs a file system with locks, such as NFS 4.

    Raises:
        StoreError: Another process or thread holds the lock, or nothing can be written.
    """
    path = target.absolute()
    key = threading.get_ident(), path
    if key in _held:
        yield
        return
    if fcntl is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
        return
    check_parent(target)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    with disk_errors(target):
        _held[key] = _take_lock(path, target)
    try:
        with disk_errors(target):
            _recover(path)
        yield
    finally:
        if (descriptor := _held.pop(key, None)) is not None:  # otherwise this is a forked child
            with suppress(OSError):
                _lock_file(path).unlink()
            os.close(descriptor)
            for folder in missing:  # those that are still empty
                with suppress(OSError):
                    folder.rmdir()


def clean_up(target: Path) -> None:
    """Recover what a killed writer left of `target`, so that a command can read it before it writes to it."""
    if is_main() and stale_files(target) and lock_owner(target) is None:
        with locked(target):
            pass


def lock_owner(target: Path) -> str | None:
    """Return the process that is writing to `target`, in words; None where there is none."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(_lock_file(target.absolute()), os.O_RDONLY | NO_LINK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def stale_files(target: Path) -> list[Path]:
    """Return the temporary files and folders of `target` and of its training state, and its lock file."""
    path = target.absolute()
    lock = _lock_file(path)
    places = (path, path / UNFINISHED)
    return [left for p in places for left in (*_temporaries(p), *_half_written(p))] + [lock] * lock.exists()


def _close_inherited_locks() -> None:
    """Close the parent's locks in a forked child, which would hold them after the end of the parent."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_locks)


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _take_lock(path: Path, target: Path) -> int:
    lock = _lock_file(path)
    for last in (*[False] * TRIES, True):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _open_lock(lock)
        except FileNotFoundError:  # another process removed the parent folder again
            if last:
                raise
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_open_file(descriptor, lock):  # and not a file that the previous holder has just removed
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except BlockingIOError:
            if last:
                message = f"{_holder(descriptor)} is writing to it; wait until that is done, or name another --out"
                os.close(descriptor)
                raise StoreError(f"{target}: {message}") from None
            time.sleep(0.02)  # `lock_owner` holds it for a moment
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
            log(f"{target}: its file system has no locks; run no other command that writes there")
            return descriptor
        os.close(descriptor)
    raise StoreError(f"{target}: other commands take its lock again and again; name another --out")


def _open_lock(lock: Path) -> int:
    """Open or create a lock file; raises `StoreError` for anything else under its name, which is left as it is."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | NO_LINK, 0o644)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise StoreError(f"{lock}: is no lock file of slimvit; remove it") from None
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1 and found.st_size <= LOCK_BYTES:
        return descriptor
    os.close(descriptor)
    raise StoreError(f"{lock}: is no lock file of slimvit; remove it")


def _holder(descriptor: int) -> str:
    number = os.pread(descriptor, LOCK_BYTES, 0).decode(errors="replace")
    if number == str(os.getpid()):
        return "another thread of this process"
    return f"process {number}" if number.isdigit() else "another command"


def _is_open_file(descriptor: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False


def _temporaries(path: Path) -> list[Path]:
    name = re.compile(rf"\.{re.escape(path.name)}\.{ASIDE}\w+(\.\w+)?")
    return sorted(p for p in path.parent.iterdir() if name.fullmatch(p.name)) if path.parent.is_dir() else []


def _half_written(path: Path) -> list[Path]:
    """The new files that a killed writer left in a folder, before they replaced another."""
    name = re.compile(rf"\..+\.{ASIDE}\w{{8}}(\.\w+)?")
    inside = path.iterdir() if path.is_dir() and not path.is_symlink() else ()
    return sorted(p for p in inside if name.fullmatch(p.name) and is_regular(p))


def _recover(path: Path) -> None:
    """Remove or restore the temporaries of killed writers; only the holder of the lock writes temporaries."""
    for target in (path, path / UNFINISHED):
        for left in _temporaries(target):
            if left.is_dir() and not left.is_symlink():
                if left.suffix == OLD and not target.exists():  # the writer was killed between two renames
                    left.rename(target)
                else:
                    shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()
    for left in (*_half_written(path), *_half_written(path / UNFINISHED)):
        left.unlink()
