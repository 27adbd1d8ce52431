"""Output folders that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from slimvit.utils.errors import StoreError
from slimvit.utils.files import check_parent, disk_errors, exchange, settle
from slimvit.utils.lock import ASIDE, OLD, UNFINISHED, locked

LOGS = "logs"
"""Subfolder of either, with what --log-with wrote."""
EXPORT = "export.json"
"""File of an exported folder that says what it was checked with."""
MARKERS = {"slim.json", "tradeoff.md", "points.json", EXPORT, UNFINISHED}
"""Files that tell a folder of ours from anything else; --force replaces only such folders."""
DRY_RUN = {"plan.json"}
"""All that a dry run leaves: a name that others use too, so nothing else may lie beside it."""


def fingerprint(facts: dict[str, Any]) -> str:
    """The name under which something is kept that depends on `facts`."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def check_free(target: Path, force: bool) -> None:
    """Raise `StoreError` now if `target` could not be written at the end of a run."""
    if target.is_file():
        raise StoreError(f"{target}: is a file; name a folder for --out")
    if found := entries(target):
        if not force:
            if (target / UNFINISHED).is_dir():
                raise StoreError(
                    f"{target}: holds an unfinished run; go on with slimvit run {target} --resume, or begin anew with "
                    "--force"
                )
            raise StoreError(f"{target}: the output folder is in use; name another one, or add --force to replace it")
        if not found & MARKERS and found != DRY_RUN:
            raise StoreError(f"{target}: holds files that slimvit did not write, so --force leaves it alone")
    check_parent(target)


def check_free_file(target: Path, suffix: str, force: bool) -> None:
    """Raise `StoreError` now if a file of this kind could not be written to `target` in the end."""
    if target.suffix != suffix:
        raise StoreError(f"{target}: the file's name must end in {suffix}; name another one for --out")
    if target.is_dir():
        raise StoreError(f"{target}: is a folder; name a file for --out")
    if target.exists() and not force:
        raise StoreError(f"{target}: exists; name another file, or add --force to replace it")
    check_parent(target)


def entries(folder: Path) -> set[str]:
    """What a folder holds, by name; nothing where there is none, or where a killed process left only a beginning."""
    found = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    return {name for name in found if not name.startswith(f".{UNFINISHED}.{ASIDE}")}


@contextmanager
def new_folder(target: Path, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well, and vanishes otherwise."""
    with locked(target):
        check_free(target, force)
        with aside(target) as partial:
            yield partial


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """`new_folder` for the holder of a claim, on `target` or on the run folder that it is the state of."""
    with disk_errors(target):
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.{ASIDE}", dir=target.parent))
        try:
            yield partial
            partial.chmod(0o755)
            settle(partial)
            _replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A temporary file beside `target` that takes its place when the block ends well, and vanishes otherwise."""
    with locked(target), disk_errors(target):
        prefix = f".{target.name}.{ASIDE}"
        descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=target.suffix, dir=target.parent)
        os.close(descriptor)
        partial = Path(name)
        try:
            yield partial
            partial.chmod(0o644)
            settle(partial)
            partial.replace(target)
        finally:
            with suppress(OSError):
                partial.unlink()


def remove(target: Path) -> None:
    """A folder of ours is gone in one step, whatever ends the process."""
    check_free(target, force=True)
    with locked(target), disk_errors(target):
        if target.exists():
            doomed = target.rename(target.with_name(f".{target.name}.{ASIDE}{os.getpid()}"))
            shutil.rmtree(doomed, ignore_errors=True)


def _replace(partial: Path, target: Path) -> None:
    """In one step where the system can exchange two folders, otherwise in two (`lock` mends a half)."""
    old = partial.with_name(f"{partial.name}{OLD}")
    if target.exists():
        if exchange(partial, target):
            return
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
