"""Output folders that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

from slimvit.utils.errors import StoreError
from slimvit.utils.files import ASIDE, check_parent, disk_errors, exchange, fsync_tree, replacing
from slimvit.utils.lock import OLD, UNFINISHED, locked

LOGS = "logs"
"""Subfolder of a run folder with the files of --log-with."""
STATE = "last.pt"
"""File with the last state of a training, in the subfolder of an unfinished run."""
EXPORT = "export.json"
"""File of an exported folder that describes its check."""
MARKERS = {"slim.json", "tradeoff.md", "points.json", EXPORT, UNFINISHED}
"""Files that mark a folder as slimvit's; --force replaces only marked folders."""
DRY_RUN = {"plan.json"}
"""The only file of a dry run. Other programs use this name too, so --force replaces no folder with further files."""


def fingerprint(facts: dict[str, Any]) -> str:
    """Return a hash of `facts`, as the name of a file that depends on them."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def link_target(target: Path) -> Path:
    """Return the folder that a link points to, or `target` itself where it is no link.

    Raises:
        StoreError: The link points to a file or to nothing.
    """
    if not target.is_symlink():
        return target
    if not target.is_dir():
        to = "a file" if target.exists() else "nothing"
        raise StoreError(f"{target}: is a link to {to}; name a folder, or a link to a folder, for --out")
    return target.resolve()


def check_free(target: Path, force: bool) -> None:
    """Raise `StoreError` if a run cannot write its folder to `target`."""
    if target.is_file():
        raise StoreError(f"{target}: is a file; name a folder for --out")
    if names := entries(target):
        if not force:
            if (target / UNFINISHED).is_dir():
                command = f"slimvit run {quote(str(target))} --resume"
                raise StoreError(f"{target}: holds an unfinished run; go on with {command}, or begin anew with --force")
            raise StoreError(f"{target}: the output folder is in use; name another one, or add --force to replace it")
        if not names & MARKERS and names != DRY_RUN:
            raise StoreError(f"{target}: holds files that slimvit did not write, so --force leaves it alone")
    check_parent(target)


def check_free_file(target: Path, suffix: str, force: bool) -> None:
    """Raise `StoreError` if a command cannot write a file with this suffix to `target`."""
    if target.is_symlink():
        raise StoreError(f"{target}: is a link, which a file would replace; name another file for --out")
    if target.suffix != suffix:
        raise StoreError(f"{target}: the file's name must end in {suffix}; name another one for --out")
    if target.is_dir():
        raise StoreError(f"{target}: is a folder; name a file for --out")
    if target.exists() and not force:
        raise StoreError(f"{target}: exists; name another file, or add --force to replace it")
    check_parent(target)


def entries(folder: Path) -> set[str]:
    """Return the names in a folder, without temporary states of a killed training; empty for a missing folder."""
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    return {name for name in names if not name.startswith(f".{UNFINISHED}.{ASIDE}")}


@contextmanager
def new_folder(target: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that replaces `target` after the block, or is removed if the block fails."""
    with locked(target):
        check_free(target, force)
        with aside(target) as partial:
            yield partial


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """`new_folder` for a caller that holds the lock of `target`, or of the run folder around it."""
    with disk_errors(target):
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.{ASIDE}", dir=target.parent))
        try:
            yield partial
            partial.chmod(0o755)
            fsync_tree(partial)
            _replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `target` after the block, or is removed if the block fails."""
    with locked(target), disk_errors(target), replacing(target) as partial:
        yield partial


def remove(target: Path) -> None:
    """Remove a folder of slimvit: it is renamed in one step, then deleted."""
    check_free(target, force=True)
    with locked(target), disk_errors(target):
        if target.exists():
            doomed = target.rename(target.with_name(f".{target.name}.{ASIDE}{secrets.token_hex(4)}"))
            shutil.rmtree(doomed, ignore_errors=True)


def _replace(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`: in one step where the system can, otherwise in two (`locked` recovers a half)."""
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
