"""The machine of a measurement in words, the versions of its packages, and the threads it used."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("slimvit", "torch", "timm")
"""Packages whose versions are recorded with a timing."""


def device_words(device: torch.device) -> str:
    """Name the device: `NVIDIA H100 80GB HBM3`, or the CPU with the number of torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type.upper()} ({platform.machine()})"
    threads = torch.get_num_threads()
    return f"{_cpu()}, {threads} thread{'s' if threads > 1 else ''}"


def versions() -> dict[str, str]:
    """Return the version of each package, and of Python."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use this many CPU threads inside the block; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu() -> str:
    """The processor's name on Linux, elsewhere its architecture."""
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return " ".join(match[1].split()) if match else platform.machine()
