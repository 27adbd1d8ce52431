"""The content of a weight file, read without running any code of it."""

from __future__ import annotations

import argparse
import collections
import json
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open

from slimvit.utils.errors import ModelError
from slimvit.utils.files import MOST, Unreadable, check_regular

SAVE = "where the weights were made: torch.save(model.state_dict(), 'weights.pth')"
"""The way out for a file that cannot be read."""
LEGACY_PICKLES = 4
"""Pickles in front of the tensors in a file of torch before 1.6: magic number, version, system, content."""
OTHER_KINDS = {
    b"\x89HDF": "an HDF5 file of Keras",
    b"\x93NUMPY": "an array of NumPy",
    b"GGUF": "a GGUF file",
    b"\x08": "an ONNX file",
}
"""First bytes of files of other programs."""


class StandIn:
    """Stands for a class that slimvit does not know: makes a plain mapping, and runs nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        made: Any = collections.OrderedDict()  # which torch fills with the items and the state of the object
        made.stands_for = f"{cls.__module__}.{cls.__name__}"
        return made


def stands_for(found: Any) -> str | None:
    """Return `module.Class` of the unknown object that a mapping stands for; None for anything else."""
    return getattr(found, "stands_for", None)


def _numpy_names() -> Iterator[tuple[Any, str]]:
    """NumPy's scalars and arrays, under the names that NumPy 1 and NumPy 2 give them."""
    for package in ("numpy.core", "numpy._core"):
        yield np.float64(0).__reduce__()[0], f"{package}.multiarray.scalar"
        yield np.empty(0).__reduce__()[0], f"{package}.multiarray._reconstruct"
    yield np.dtype, "numpy.dtype"
    yield np.ndarray, "numpy.ndarray"
    for kind in {type(np.dtype(code)) for code in "?bBhHiIlLqQefdSUO"}:
        yield kind, f"{kind.__module__}.{kind.__qualname__}"


ALLOWED: list[tuple[Any, str]] = [
    *_numpy_names(),
    (argparse.Namespace, "argparse.Namespace"),
    *((kind, f"builtins.{kind.__name__}") for kind in (dict, list, tuple, int, float, str, bool)),
]
"""What a pickle may make beside tensors: plain data of Python and NumPy."""


def read_content(file: Path) -> Any:
    """Return the content of a weight file: a state dict, or a checkpoint around one.

    An object of an unknown class, such as the configuration of a training library, becomes a plain mapping (`StandIn`).

    Raises:
        ModelError: The file is missing, damaged, or of another program.
    """
    if file.is_dir():
        raise ModelError(f"{file}: is a folder; name the weight file in it (a run folder is named as the model)")
    try:
        check_regular(file)
        return _read_safetensors(file) if _is_safetensors(file) else _read_pickle(file)
    except FileNotFoundError:
        raise ModelError(f"{file}: no such weight file") from None
    except ModelError:
        raise
    except Exception as error:  # the file is the user's: every way it can be broken ends in one line
        raise ModelError(f"{file}: not a readable weight file: {_reason(file, error)}") from None


def _is_safetensors(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(9)
    return head[8:] == b"{" or file.suffix.lower() == ".safetensors"


def _read_safetensors(file: Path) -> dict[str, Any]:
    """The tensors by name, and beside them the JSON values of the file's metadata."""
    with safe_open(file, framework="pt") as opened:
        said = {key: _json(text) for key, text in (opened.metadata() or {}).items()}
        return said | {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_pickle(file: Path) -> Any:
    _check_kind(file)
    known = {name for _, name in ALLOWED}
    stand_ins = [(_stand_in(name), name) for name in sorted(_classes_named(file) - known)]
    with torch.serialization.safe_globals([*ALLOWED, *stand_ins]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = torch.load(file, map_location="cpu", weights_only=True)
    if (kind := stands_for(content)) is not None and not content:
        raise ModelError(f"{file}: {pickled_object(kind)}; {SAVE}")
    return content


def pickled_object(kind: str) -> str:
    """Return the words for a pickled object in the place of weights."""
    return f"holds a whole pickled {kind.rpartition('.')[2]}, which only its own code could read"


def _stand_in(name: str) -> type[StandIn]:
    module, _, short = name.rpartition(".")
    return type(short, (StandIn,), {"__module__": module})


def _check_kind(file: Path) -> None:
    """Raise `ModelError` for a file of another program, by its first bytes."""
    with file.open("rb") as stream:
        head = stream.read(8)
    found = next((kind for magic, kind in OTHER_KINDS.items() if head.startswith(magic)), None)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
        if any(name.endswith("constants.pkl") for name in names):
            raise ModelError(f"{file}: is a TorchScript program; save its weights alone: torch.jit.load(FILE), {SAVE}")
        if not any(name.endswith("data.pkl") for name in names):
            found = "an archive of NumPy (JAX)" if any(n.endswith(".npy") for n in names) else "a zip archive"
    if found:
        raise ModelError(f"{file}: is {found}, not weights of PyTorch (.safetensors, or .pth as torch.save writes it)")


def _classes_named(file: Path) -> set[str]:
    """Every class and function that the pickles of a file name, found without carrying them out."""
    if not zipfile.is_zipfile(file):
        with file.open("rb") as stream:
            return _named(stream, LEGACY_PICKLES)
    with zipfile.ZipFile(file) as archive:
        pickle = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        if archive.getinfo(pickle).file_size > MOST:
            raise Unreadable(f"its names take more than {MOST:,} bytes")
        return _named(BytesIO(archive.read(pickle)), 1)


def _named(stream: BinaryIO, pickles: int) -> set[str]:
    operations = (item for _ in range(pickles) for item in pickletools.genops(stream))
    return {str(argument).replace(" ", ".") for code, argument, _ in operations if code.name == "GLOBAL"}


def _reason(file: Path, error: Exception) -> str:
    """The reason in our own words where torch would advise to run the file's code."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    if "Weights only" in text or "weights_only" in str(error):
        return f"it is damaged, or a pickle that cannot be read without running its code; {SAVE}"
    return f"{text}; {SAVE}" if file.stat().st_size else "it is empty"
