"""How much memory this process may still take: what the machine has left, and what control groups leave of that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def free_memory() -> int | None:
    """Bytes; None where the system does not tell. A container or a job of a batch system sees all of the machine's
    memory as free, and is killed when it takes more than its own share: the smallest of the limits counts."""
    machine = bytes_told(PROC / "meminfo", "MemAvailable")
    return min([*([] if machine is None else [machine]), *_left_by_groups()], default=None)


def bytes_told(file: Path, name: str) -> int | None:
    """A line `name: 123 kB` of one of Linux's files of figures, in bytes; None where there is no such file or line."""
    found = re.search(rf"{name}:\s+(\d+) kB", _read(file))
    return int(found[1]) * 1024 if found is not None else None


def _left_by_groups() -> Iterator[int]:
    """Bytes that each group of this process has left; a group's limit holds for all groups inside it."""
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, (limit, usage, idle) = (GROUPS / "memory", V1) if controllers else (GROUPS, V2)
        inside = PurePosixPath(path.lstrip("/"))
        for folder in (root / inside, *(root / outer for outer in inside.parents)):
            most, held = _read(folder / limit).strip(), _read(folder / usage).strip()
            if most.isdecimal() and held.isdecimal():  # not `max`, which is no limit
                cache = re.search(rf"^{idle} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
                yield max(0, int(most) - int(held) + (0 if cache is None else int(cache[1])))


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


SHARE = 0.5
"""Of the free memory, that may be taken."""


def free_bytes(device: torch.device) -> int | None:
    """Of a GPU's memory, or of what this process may take of the machine's; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory() if device.type == "cpu" else None
