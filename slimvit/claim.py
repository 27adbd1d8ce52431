"""One process at a time writes to an output folder, and what killed ones left beside it is put right."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slimvit.disk import disk_error
from slimvit.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows has another kind of lock; there, two commands on one folder are not told apart
    fcntl = None  # type: ignore[assignment]

ASIDE = "slimvit-"
"""How the random part of a name begins under which something is written before it takes its place."""
OLD = ".old"
_held: set[Path] = set()


@contextmanager
def claimed(target: Path) -> Iterator[None]:
    """Keep other processes of slimvit from writing to ``target`` while the block runs; a process may claim it twice.

    The lock is the system's own on a file beside ``target``, so it ends with the process, however that ends. Between
    machines it holds where the file system's locks do (NFS 4, not every other one). Raises :class:`StoreError` when
    another process has it, or where nothing can be written.
    """
    place = target.absolute()
    if place in _held or fcntl is None:
        yield
        return
    lock = place.with_name(f".{place.name}.lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(lock, target)
    except OSError as error:
        raise disk_error(target, error) from None
    _held.add(place)
    try:
        _put_right(place)
        yield
    finally:
        _held.discard(place)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(lock: Path, target: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(descriptor, lock):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except BlockingIOError:
            who = os.read(descriptor, 20).decode(errors="replace") or "of another command"
            os.close(descriptor)
            raise StoreError(
                f"{target}: process {who} is writing to it; wait until that one ends, or name another folder for --out"
            ) from None
        os.close(descriptor)  # the one before us took its file away in between


def _same(descriptor: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False


def _put_right(place: Path) -> None:
    """Only the holder of the lock writes aside, so whatever lies there was left by a process that is gone."""
    name = re.compile(rf"\.{re.escape(place.name)}\.{ASIDE}\w+({re.escape(OLD)})?")
    for left in sorted(place.parent.iterdir()):
        found = name.fullmatch(left.name)
        if found and found[1] and not place.exists():  # killed between the two renames of an exchange
            left.rename(place)
        elif found:
            shutil.rmtree(left, ignore_errors=True)
