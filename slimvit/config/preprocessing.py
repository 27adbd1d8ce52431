"""Checks of the values of a model's preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from slimvit.config.choices import CROP_MODES, INTERPOLATIONS

LARGEST_CROP = 2.0
"""Largest side of the input over the side of the resized image; timm's values go up to 1.15."""
LARGEST_SIZE = 1_000_000


def defects_of_preprocessing(values: Mapping[str, Any]) -> list[str]:
    """Return one clause for every impossible value; missing values are no defects."""
    checks = {
        "mean": ("numbers from 0 to 1, one per channel (values of 0-255 divided by 255)", _is_mean),
        "std": ("numbers above 0 and at most 1, one per channel (values of 0-255 divided by 255)", _is_std),
        "interpolation": (f"one of {', '.join(INTERPOLATIONS)}", INTERPOLATIONS.__contains__),
        "crop_pct": (
            f"a number above 0 and at most {LARGEST_CROP:g}",
            lambda v: _is_number(v) and 0 < v <= LARGEST_CROP,
        ),
        "crop_mode": (f"one of {', '.join(CROP_MODES)}", CROP_MODES.__contains__),
        "input_size": ("channels, height and width, whole numbers above 0", _is_size),
    }
    given = {name: values[name] for name in checks if values.get(name) is not None}
    return [f"{k} is {str(v)[:60]}, but must be {checks[k][0]}" for k, v in given.items() if not checks[k][1](v)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and len(values) > 0 and all(map(_is_number, values))


def _is_mean(values: Any) -> bool:
    return _are_numbers(values) and all(0 <= v <= 1 for v in values)


def _is_std(values: Any) -> bool:
    return _are_numbers(values) and all(0 < v <= 1 for v in values)


def _is_size(values: Any) -> bool:
    whole = isinstance(values, list | tuple) and len(values) == 3 and all(type(v) is int for v in values)
    return whole and all(0 < v <= LARGEST_SIZE for v in values)
