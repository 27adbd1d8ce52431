"""The allow-list of data names, folders and splits: local folders and plain names. Recipes are checked against it.

The libraries behind timm's data names open any address, and `pipe:` with a shell.
"""

from __future__ import annotations

import re

PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")
"""timm's prefixes of data names."""
SCHEME = re.compile(r"[a-z][\w+.-]+:", re.ASCII | re.IGNORECASE)
"""The scheme of an address, such as `https:` or `pipe:`, but no drive such as `C:`."""
FOLDER = "a local folder; download or mount the data first, or put ./ before a folder's name with a colon"
NAMES = {
    "torch": (r"\w+(/\w+)*", "torch/NAME"),
    "hfds": (r"\w[\w.-]*(/\w[\w.-]*)?", "hfds/OWNER/NAME of the Hugging Face Hub"),
    "hfids": (r"\w[\w.-]*(/\w[\w.-]*)?", "hfids/OWNER/NAME of the Hugging Face Hub"),
    "tfds": (r"\w+(/\w[\w.+-]*)?(:[\d.*]+)?", "tfds/NAME, tfds/NAME/CONFIG or either with :VERSION"),
    "wds": (r"\w[\w.-]*(/\w[\w.-]*)*", "wds/NAME"),
}
"""Prefix -> pattern of the name after it, and its description."""
SLICES = (r"[\w.\[\]:%+(), -]+", "names and slices such as train[:10%]")
SPLITS = {
    "hfds": SLICES,
    "hfids": SLICES,
    "tfds": SLICES,
    "wds": (r"[\w.{},|/=+@%-]+(::[\w.{},|/=+@%-]+)*", "names of shards such as train-{000..146}.tar|1281167"),
}
"""Prefix -> pattern of a split, and its description. Splits of other data are folders or words."""


def prefix_of(name: str) -> str:
    """Return timm's prefix of a data name (`torch`, `hfds`, ...); empty for other names."""
    prefix, slash, _ = name.partition("/")
    return prefix.lower() if slash and prefix.lower() in PREFIXES else ""


def defects_of_data(name: str, root: str | None, splits: dict[str, str]) -> list[str]:
    """Return one clause for every name, folder or split outside the allow-list.

    Args:
        name: Name of the data set.
        root: Folder of the data set; None without.
        splits: Key of the recipe -> split.
    """
    prefix = prefix_of(name)
    defects = [_defect("name", name.partition("/")[2], *NAMES[prefix], name)] if prefix else [_of_path("name", name)]
    defects += [] if root is None else [_of_path("root", root)]
    defects += [_defect(k, s, *SPLITS[prefix]) if prefix in SPLITS else _of_path(k, s) for k, s in splits.items()]
    return [defect for defect in defects if defect]


def _defect(key: str, text: str, pattern: str, allowed: str, whole: str | None = None) -> str:
    if re.fullmatch(pattern, text, re.ASCII):
        return ""
    return f"{key} is {_quoted(text if whole is None else whole)}, but must be {allowed}"


def _of_path(key: str, path: str) -> str:
    refused = not path or "\0" in path or SCHEME.match(path)
    return f"{key} is {_quoted(path)}, but must be {FOLDER}" if refused else ""


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
