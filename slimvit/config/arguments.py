"""Checks of create_model arguments from a file: bounds of values, and no arguments that read or fetch other files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

REFUSED = frozenset(
    {
        "cache_dir",
        "checkpoint_path",
        "exportable",
        "feature_cls",
        "feature_cfg",
        "features_only",
        "no_jit",
        "out_indices",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_custom_load",
        "pretrained_filter_fn",
        "pretrained_strict",
        "scriptable",
        "weights_only",
    }
)
"""Arguments of `timm.create_model` that do not describe the network: sources of weights, and wrappers."""
LARGEST = {"depth": 1_000, "depths": 1_000, "img_size": 1_000_000, "window_size": 10_000}
"""Bounds of arguments whose square or whose count of layers decides the cost of building."""
NUMBER = 10_000_000
"""Bound of the absolute value of any other number."""
LITERALS = {"None": "null", "null": "null", "True": "true", "true": "true", "False": "false", "false": "false"}
"""Texts that were meant as values -> the value in a file."""
INSTEAD = {"checkpoint_path": "; give weights", "pretrained_cfg": "; give weights"}
"""Refused argument -> advice in the message."""


def defects_of_arguments(args: dict[str, Any], key: str = "model_args") -> list[str]:
    """Return one clause for every defect of a network's arguments; `key` is their key in the file."""
    refused = sorted(args.keys() & REFUSED)
    defects = [f"{key}.{name} is no argument of a network{INSTEAD.get(name, '')}" for name in refused]
    for name, value in args.items():
        largest = LARGEST.get(name, NUMBER)
        for leaf in _leaves(value):
            if isinstance(leaf, str) and leaf in LITERALS:
                defects.append(f"{key}.{name} is the text {leaf!r}, which counts as true; write {LITERALS[leaf]}")
            elif isinstance(leaf, int | float) and not abs(leaf) <= largest:  # NaN fails too
                defects.append(f"{key}.{name} is {str(leaf)[:20]}, but must be at most {largest:,}")
            elif not isinstance(leaf, bool | int | float | str | None):
                defects.append(f"{key}.{name} holds a {type(leaf).__name__}, but must hold numbers, texts and lists")
    return defects


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
