"""Status of an output folder: whole, unfinished, being written, or left by a killed process. No torch."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimvit.io.sweep_folder import is_sweep_folder, point_folder, read_contents
from slimvit.utils.lock import OLD, UNFINISHED, lock_owner, stale_files
from slimvit.utils.output import EXPORT, STATE, entries
from slimvit.utils.reading import Unreadable, read_json, read_text

MODEL, REPORT, HISTORY = "slim.json", "report.json", "history.csv"


@dataclass(frozen=True)
class FolderStatus:
    """The status of one output folder."""

    state: str
    """`whole`, `damaged`, `unfinished`, `sweep`, or `nothing` (temporary files of a killed process only)."""
    text: str
    """The state in words."""
    go_on: str | None = None
    """Command that resumes the run."""
    writer: str | None = None
    """Process that is writing to the folder."""
    points: tuple[int, int] | None = None
    """Done points and all points of a sweep."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)


def folder_status(folder: Path) -> FolderStatus | None:
    """Return the status of a folder; None for a folder without files or processes of slimvit.

    Raises:
        StoreError: points.json of a sweep is damaged.
    """
    writer = lock_owner(folder)
    status = _sweep(folder) if is_sweep_folder(folder) else _run(folder)
    if writer is None:
        return status
    content = "nothing yet" if status is None or status.state == "nothing" else status.text
    text = f"{writer} is writing to it; so far it holds {content}"
    state, points = ("nothing", None) if status is None else (status.state, status.points)
    return FolderStatus(state, text, writer=writer, points=points)


def has_model(folder: Path) -> bool:
    """Return whether the folder holds a model."""
    return (folder / MODEL).is_file()


def _run(folder: Path) -> FolderStatus | None:
    if (folder / UNFINISHED).is_dir():
        command = f"slimvit run {shlex.quote(str(folder))} --resume"
        replaced = ", and the whole run that it will replace" if has_model(folder) else ""
        text = f"an unfinished run ({_epochs(folder)} of its training saved){replaced}; go on with: {command}"
        return FolderStatus("unfinished", text, command)
    if has_model(folder):
        if reason := _damage(folder / REPORT):
            return FolderStatus("damaged", f"a run whose {REPORT} is damaged ({reason}); run it again to rewrite it")
        return FolderStatus("whole", "a whole run" if (folder / REPORT).exists() else "a whole saved model")
    if (folder / EXPORT).is_file():
        return FolderStatus("whole", "a whole export")
    stale = stale_files(folder)
    if not stale or entries(folder):
        return None
    if any(path.suffix == OLD for path in stale):
        text = (
            "nothing: a killed process moved its content aside; the next command that writes to it restores the content"
        )
    else:
        text = "nothing yet, only temporary files of a killed process; the next command that writes to it removes them"
    return FolderStatus("nothing", text)


def _damage(report: Path) -> str:
    """Why a report cannot be read; empty for a report, or none."""
    if not report.exists():
        return ""
    try:
        content = read_json(report)
    except (FileNotFoundError, Unreadable) as reason:
        return str(reason)
    return "" if isinstance(content, dict) and content.get("stages") else "it holds no stages"


def _epochs(folder: Path) -> str:
    """Number of epochs in the saved state of the unfinished training, as in `2 epochs`."""
    try:
        rows = read_text(folder / UNFINISHED / HISTORY).splitlines()[1:]  # written after the state
        count = len(rows) if (folder / UNFINISHED / STATE).is_file() else 0
    except (FileNotFoundError, Unreadable):
        count = 0
    return f"{count} epoch{'s' * (count != 1)}"


def _sweep(folder: Path) -> FolderStatus:
    entries = read_contents(folder).points
    folders = [point_folder(folder, entry.id) for entry in entries]
    written = [f / REPORT for f in folders if (f / REPORT).exists() and not (f / UNFINISHED).exists()]
    damaged = sum(bool(_damage(report)) for report in written)
    done, failed = len(written) - damaged, sum(entry.error is not None for entry in entries)
    text = f"a sweep with {done} of {len(entries)} points done" + (f", {failed} failed" if failed else "")
    text += f", {damaged} with a damaged {REPORT}" if damaged else ""
    if done < len(entries):
        text += "; repeat its slimvit sweep command to run the rest"
    return FolderStatus("sweep", text, points=(done, len(entries)))
