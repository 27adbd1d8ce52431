"""The image files of a folder: every format that Pillow reads, at any depth; what is left out is counted and named."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from slimvit.utils.errors import DataError, name_list

with suppress(ImportError):  # optional
    from pillow_heif import register_heif_opener

    register_heif_opener()
Image.init()

NOT_READ = {"BUFR", "EPS", "FITS", "FLI", "GBR", "GRIB", "HDF5", "IPTC", "MPEG", "PCD", "WMF"}
"""Pillow's formats that run another program, that Pillow only recognises, or that are seldom pictures."""
SUFFIXES = {end: kind for end, kind in Image.registered_extensions().items() if kind in {*Image.OPEN, "MPO"} - NOT_READ}
"""Suffix of a file name -> its format."""
COMMON = tuple(end for end in (".jpg", ".png", ".tif", ".webp", ".avif", ".heic") if end in SUFFIXES)
"""Suffixes for messages."""
SYSTEM = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"}
"""Names, in small letters, of entries that operating systems and unpackers leave in folders."""
WAY_OUT = dict.fromkeys((".heic", ".heics", ".heif", ".heifs", ".hif"), "pip install pillow-heif") | {
    ".avif": "pip install -U pillow"
}
"""Suffix -> what makes Pillow read it."""


@dataclass(frozen=True)
class FolderFiles:
    """The files of a folder and of the folders in it, without hidden ones and those of the operating system."""

    images: list[str]
    """Paths of images, by their suffix."""
    others: list[str]
    """Paths of all other files."""

    @property
    def left_out(self) -> str:
        """The other files, not empty, in words: `2 files are left out: 1 .heic (pip ...), 1 .txt, such as a.txt`."""
        name = os.path.basename(min(self.others))[:60]
        if len(self.others) == 1:
            return f"1 file is left out: {name}{_way_out(_suffix(name))}"
        counts = Counter(_suffix(path)[:12] or "without suffix" for path in self.others).most_common()
        kinds = name_list(f"{count} {end}{_way_out(end)}" for end, count in counts)
        return f"{len(self.others)} files are left out: {kinds}, such as {name}"


def files_of(folder: Path) -> FolderFiles:
    """Return the files of a folder, at any depth, in no particular order. Links are followed, except to a folder above.

    Raises:
        DataError: A folder cannot be listed.
    """
    images: list[str] = []
    others: list[str] = []
    for place, below, names in os.walk(folder, followlinks=True, onerror=_refuse):
        below[:] = _shown(name for name in below if not _leads_back(place, name))
        for name in _shown(names):
            (images if _suffix(name) in SUFFIXES else others).append(os.path.join(place, name))
    return FolderFiles(images, others)


def is_hidden(name: str) -> bool:
    """Return whether an entry of a folder is hidden, or not the user's: `.ipynb_checkpoints`, `._1.jpg`, `__MACOSX`."""
    return name.startswith(".") or name.lower() in SYSTEM


def _shown(names: Iterable[str]) -> list[str]:
    return [name for name in names if not is_hidden(name)]


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _way_out(suffix: str) -> str:
    return f" ({WAY_OUT[suffix]})" if suffix in WAY_OUT else ""


def _leads_back(place: str, name: str) -> bool:
    """Whether an entry is a link to a folder above it."""
    path = os.path.join(place, name)
    return os.path.islink(path) and Path(os.path.realpath(place)).is_relative_to(os.path.realpath(path))


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be listed: {error.strerror}; make it readable or move it elsewhere")
