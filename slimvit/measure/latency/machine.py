"""The machine that a measurement ran on, in words, and the threads it used."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("slimvit", "torch", "timm")
"""Whose versions belong to a timing."""


def device_words(device: torch.device) -> str:
    """``NVIDIA H100 80GB HBM3``, or the CPU's name with torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type.upper()} ({platform.machine()})"
    threads = torch.get_num_threads()
    return f"{_cpu()}, {threads} thread{'s' if threads > 1 else ''}"


def versions() -> dict[str, str]:
    """Package -> version, Python's included."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """torch computes with this many threads on a CPU, afterwards with as many as before; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu() -> str:
    """What Linux calls the processor, elsewhere its architecture."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return " ".join(found[1].split()) if found else platform.machine()
