"""What containers and batch systems leave of the machine's memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimvit.utils import device
from slimvit.utils.device import free_memory as free

MIB = 2**20


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """100 MiB available, no groups."""
    for name in ("PROC", "GROUPS"):
        monkeypatch.setattr(device, name, tmp_path / name)
    write(tmp_path / "PROC" / "meminfo", "MemFree:  1 kB\nMemAvailable:   102400 kB\n")
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def group(folder: Path, names: tuple[str, str, str], most: object, held: int, idle: int) -> None:
    limit, usage, cache = names
    write(folder / limit, f"{most}\n")
    write(folder / usage, f"{held}\n")
    write(folder / "memory.stat", f"anon 5\n{cache} {idle}\nactive_file 9\n")


def test_what_the_machine_has_left(machine: Path) -> None:
    assert free() == 100 * MIB


def test_another_system_does_not_tell(machine: Path) -> None:
    (machine / "PROC" / "meminfo").unlink()
    assert free() is None


@pytest.mark.parametrize(
    ("line", "root", "names"),
    [("0::/a/b", ".", device.V2), ("4:cpu,memory:/a/b", "memory", device.V1)],
)
def test_the_smallest_limit_of_a_group_and_of_those_around_it(machine, line, root, names) -> None:
    write(machine / "PROC" / "self" / "cgroup", f"7:pids:/a\n{line}\n")
    groups = machine / "GROUPS" / root
    assert free() == 100 * MIB
    group(groups / "a" / "b", names, "max", 10 * MIB, MIB)
    assert free() == 100 * MIB
    group(groups / "a", names, 60 * MIB, 30 * MIB, 2 * MIB)  # files that nobody reads are given up first
    assert free() == 32 * MIB
    group(groups, names, 30 * MIB, 40 * MIB, 0)
    assert free() == 0


def test_a_container_that_sees_its_own_group_as_the_outermost(machine: Path) -> None:
    """Version 1 in a container names the path outside of it."""
    write(machine / "PROC" / "self" / "cgroup", "4:memory:/docker/1234\n")
    group(machine / "GROUPS" / "memory", device.V1, 50 * MIB, 10 * MIB, 0)
    assert free() == 40 * MIB
