"""The status of an output folder: whole, unfinished, being written, or left by a killed process. No torch."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimvit.io.sweep_folder import is_sweep_folder, point_folder, read_contents
from slimvit.utils.lock import OLD, UNFINISHED, lock_owner, stale_files
from slimvit.utils.output import EXPORT, entries

MODEL, REPORT, HISTORY = "slim.json", "report.json", "history.csv"


@dataclass(frozen=True)
class FolderStatus:
    """The status of one output folder."""

    state: str
    """`whole`, `unfinished`, `sweep`, or `nothing` where a killed process left only temporary files."""
    text: str
    """The state in words."""
    go_on: str | None = None
    """The command that continues it."""
    writer: str | None = None
    """The process that is writing to it now."""
    points: tuple[int, int] | None = None
    """For a sweep: points done, and points in all."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)


def folder_status(folder: Path) -> FolderStatus | None:
    """Return the status of a folder; None where slimvit has not written and is not writing.

    Raises:
        StoreError: The contents of a sweep are damaged.
    """
    busy = lock_owner(folder)
    found = _sweep(folder) if is_sweep_folder(folder) else _run(folder)
    if busy is not None:
        content = "nothing yet" if found is None or found.state == "nothing" else found.text
        text = f"{busy} is writing to it; so far it holds {content}"
        state, points = ("nothing", None) if found is None else (found.state, found.points)
        return FolderStatus(state, text, writer=busy, points=points)
    return found


def has_model(folder: Path) -> bool:
    """Return whether the folder holds a model."""
    return (folder / MODEL).is_file()


def _run(folder: Path) -> FolderStatus | None:
    if (folder / UNFINISHED).is_dir():
        go_on = f"slimvit run {shlex.quote(str(folder))} --resume"
        beside = "the whole run that it is to replace, and " if has_model(folder) else ""
        text = f"{beside}an unfinished run ({_epochs(folder)} of its training saved); go on with: {go_on}"
        return FolderStatus("unfinished", text, go_on)
    if has_model(folder):
        return FolderStatus("whole", "a whole run" if (folder / REPORT).is_file() else "a whole saved model")
    if (folder / EXPORT).is_file():
        return FolderStatus("whole", "a whole export")
    left = stale_files(folder)
    if not left or entries(folder):
        return None
    if any(path.suffix == OLD for path in left):
        text = "nothing, for a killed process left its content aside; the next command that writes to it puts it back"
    else:
        text = "nothing yet, only what a killed process left beside it; the next command that writes to it clears that"
    return FolderStatus("nothing", text)


def _epochs(folder: Path) -> str:
    """`2 epochs`, from the history of the unfinished training."""
    path = folder / UNFINISHED / HISTORY
    count = max(0, len(path.read_text(errors="replace").splitlines()) - 1) if path.is_file() else 0
    return f"{count} epoch{'s' * (count != 1)}"


def _sweep(folder: Path) -> FolderStatus:
    entries = read_contents(folder).points
    folders = [point_folder(folder, entry.id) for entry in entries]
    done = sum((f / REPORT).is_file() and not (f / UNFINISHED).exists() for f in folders)
    failed = sum(entry.error is not None for entry in entries)
    text = f"a sweep with {done} of {len(entries)} points done" + (f", {failed} failed" if failed else "")
    if done < len(entries):
        text += "; the command that began it goes on with the rest"
    return FolderStatus("sweep", text, points=(done, len(entries)))
