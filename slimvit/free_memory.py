"""How much memory this process may still take: what the machine has left, and what control groups leave of that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def free_memory() -> int | None:
    """Bytes; None where the system does not tell. A container or a job of a batch system sees all of the machine's
    memory as free, and is killed when it takes more than its own share: the smallest of the limits counts."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _read(PROC / "meminfo"))
    machine = [] if found is None else [int(found[1]) * 1024]
    return min([*machine, *_left_by_groups()], default=None)


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
