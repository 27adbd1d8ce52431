"""model.safetensors: the weights of a saved model. Size, tensor shapes and checksum are checked before loading."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from slimvit.utils.errors import StoreError
from slimvit.utils.reading import Unreadable, check_regular

WEIGHTS = "model.safetensors"
MOST_BUFFER_ENTRIES = 2**28
"""Most entries of a saved model's buffers, such as position tables."""
HEADER, LINE = 2**16, 256
"""Bytes allowed for the header of a safetensors file, and per tensor in it besides the tensor's name."""
LISTED = 8
"""Most differences that a message lists."""


def check_weights(path: Path, expected: dict[str, tuple[int, ...]], sha256: str) -> None:
    """Check a weight file against the expected shapes and its checksum, without loading the weights.

    Raises:
        StoreError: The file is missing or damaged, or a tensor is missing, unexpected or of another shape.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            shapes = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise StoreError(f"{path}: missing") from None
    except (SafetensorError, OSError, Unreadable) as error:
        raise StoreError(f"{path}: damaged: {error}") from None
    if differences := shape_differences(expected, shapes):
        raise StoreError(f"{path}: does not fit slim.json: {differences}")
    if checksum(path) != sha256:
        raise StoreError(f"{path}: damaged: its checksum is not the one in slim.json")


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the state dict, by name."""
    return {k: tuple(v.shape) for k, v in model.state_dict().items()}


def shape_differences(expected: dict[str, tuple[int, ...]], shapes: dict[str, tuple[int, ...]]) -> str:
    """Return missing, unexpected and wrongly shaped tensors in one line; empty if there are none."""
    clauses = [f"{k} is missing" for k in expected if k not in shapes]
    clauses += [f"{k} is unexpected" for k in shapes if k not in expected]
    clauses += [
        f"{k} has shape {list(shapes[k])}, expected {list(shape)}"
        for k, shape in expected.items()
        if k in shapes and shapes[k] != shape
    ]
    more = f"; and {len(clauses) - LISTED} more" if len(clauses) > LISTED else ""
    return "; ".join(clauses[:LISTED]) + more


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def largest_file(model: nn.Module) -> int:
    """Return an upper bound of a model's safetensors file in bytes: 8 per number, and a header line per tensor."""
    return HEADER + sum(8 * v.numel() + len(k) + LINE for k, v in model.state_dict().items())


def check_buffers(model: nn.Module) -> None:
    """Raise `StoreError` for a model whose buffers exceed those of any known model.

    The file size bounds the weights. Buffers are computed from the arguments, so they need a bound of their own.
    """
    entries = sum(b.numel() for b in model.buffers())
    if entries > MOST_BUFFER_ENTRIES:
        raise StoreError(f"its model_args ask for buffers of {entries:,} entries, more than {MOST_BUFFER_ENTRIES:,}")


@contextmanager
def safetensors_errors() -> Iterator[None]:
    """Turn safetensors' error for a failed write into the system's `OSError`, whose number it quotes."""
    try:
        yield
    except SafetensorError as error:
        if (number := re.search(r"(?:os error|code:) (\d+)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
