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
from slimvit.utils.reading import MOST, Unreadable, check_regular

HOW_TO_SAVE = "where the weights were made: torch.save(model.state_dict(), 'weights.pth')"
"""Advice for a file that cannot be read."""
LEGACY_PICKLES = 4
"""Number of pickles before the tensors in a file of torch < 1.6: magic number, version, system, content."""
OTHER_FORMATS = {
    b"\x89HDF": "an HDF5 file of Keras",
    b"\x93NUMPY": "an array of NumPy",
    b"GGUF": "a GGUF file",
    b"\x08": "an ONNX file",
}
"""First bytes of a file -> the format, which is no format of PyTorch."""


class StandIn:
    """Placeholder of an unknown class in a pickle. An instance is a plain mapping, and no code of the class runs."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        mapping: Any = collections.OrderedDict()  # torch fills it with the items and the state of the object
        mapping.stands_for = f"{cls.__module__}.{cls.__name__}"
        return mapping


def stands_for(value: Any) -> str | None:
    """Return `module.Class` of the pickled object that a `StandIn` replaces; None for any other value."""
    return getattr(value, "stands_for", None)


def _numpy_names() -> Iterator[tuple[Any, str]]:
    """NumPy's types of scalars and arrays, under their names in NumPy 1 and NumPy 2."""
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
"""Types that a pickle may create beside tensors, each with its name: plain data of Python and NumPy."""


def read_content(file: Path) -> Any:
    """Return the content of a weight file: a state dict, or a checkpoint around one.

    An object of an unknown class becomes a plain mapping (`StandIn`), such as the configuration of a training library.

    Raises:
        ModelError: The file is missing, damaged, or in another format than PyTorch's.
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
    except Exception as error:  # any error of a broken file becomes one line
        raise ModelError(f"{file}: not a readable weight file: {_reason(file, error)}") from None


def _is_safetensors(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(9)
    return head[8:] == b"{" or file.suffix.lower() == ".safetensors"


def _read_safetensors(file: Path) -> dict[str, Any]:
    """The tensors by name, and the entries of the metadata, decoded where they are JSON."""
    with safe_open(file, framework="pt") as opened:
        metadata = {key: _json(text) for key, text in (opened.metadata() or {}).items()}
        return metadata | {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_pickle(file: Path) -> Any:
    _check_kind(file)
    known = {name for _, name in ALLOWED}
    stand_ins = [(_stand_in(name), name) for name in sorted(_class_names(file) - known)]
    with torch.serialization.safe_globals([*ALLOWED, *stand_ins]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = torch.load(file, map_location="cpu", weights_only=True)
    if (kind := stands_for(content)) is not None and not content:
        raise ModelError(f"{file}: {pickled_object(kind)}; {HOW_TO_SAVE}")
    return content


def pickled_object(kind: str) -> str:
    """Return the message about a pickled object where weights were expected."""
    return f"holds a whole pickled {kind.rpartition('.')[2]}, which only the code of its class can read"


def _stand_in(name: str) -> type[StandIn]:
    module, _, short = name.rpartition(".")
    return type(short, (StandIn,), {"__module__": module})


def _check_kind(file: Path) -> None:
    """Raise `ModelError` for a file in another format than PyTorch's."""
    with file.open("rb") as stream:
        head = stream.read(8)
    other = next((kind for magic, kind in OTHER_FORMATS.items() if head.startswith(magic)), None)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
        if any(name.endswith("constants.pkl") for name in names):
            raise ModelError(
                f"{file}: is a TorchScript program; save its weights alone: torch.jit.load(FILE), {HOW_TO_SAVE}"
            )
        if not any(name.endswith("data.pkl") for name in names):
            other = "an archive of NumPy (JAX)" if any(n.endswith(".npy") for n in names) else "a zip archive"
    if other:
        raise ModelError(
            f"{file}: is {other}, not weights of PyTorch (a .safetensors file, or a .pth file of torch.save)"
        )


def _class_names(file: Path) -> set[str]:
    """Names of all classes and functions in the pickles of a file, which are not executed."""
    if not zipfile.is_zipfile(file):
        with file.open("rb") as stream:
            return _global_names(stream, LEGACY_PICKLES)
    with zipfile.ZipFile(file) as archive:
        pickle = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        if archive.getinfo(pickle).file_size > MOST:
            raise Unreadable(f"its pickle has more than {MOST:,} bytes")
        return _global_names(BytesIO(archive.read(pickle)), 1)


def _global_names(stream: BinaryIO, pickles: int) -> set[str]:
    operations = (item for _ in range(pickles) for item in pickletools.genops(stream))
    return {str(argument).replace(" ", ".") for code, argument, _ in operations if code.name == "GLOBAL"}


def _reason(file: Path, error: Exception) -> str:
    """The reason in one line, without torch's advice to run the code of the file."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    if "Weights only" in text or "weights_only" in str(error):
        return f"it is damaged, or a pickle that cannot be read without running its code; {HOW_TO_SAVE}"
    return f"{text}; {HOW_TO_SAVE}" if file.stat().st_size else "it is empty"
