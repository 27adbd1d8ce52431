"""The errors a user can cause. Each carries one line: the thing, the value, what was allowed, what to do next.

The command line prints that line and exits with code 1. Every other exception is a bug of ours and keeps its
traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SlimvitError(Exception):
    """Something the user gave does not work; the message says what, and what would."""

    exit_code = 1


class ModelError(SlimvitError):
    """A model that is unknown, unsupported, or whose weights do not fit."""


class DataError(SlimvitError):
    """Images or labels that are missing, unreadable, or do not fit the model."""


class PlanError(SlimvitError):
    """A plan, ratio or budget that cannot be carried out on this model."""


class RecipeError(SlimvitError):
    """A recipe with unknown keys, bad values or contradictions."""


class StoreError(SlimvitError):
    """A run folder that is incomplete, damaged, or in the way."""


class DiskError(StoreError):
    """A disk that is full, read-only or failing."""


class WorkerError(SlimvitError):
    """A process that loads images is gone."""


def nearest(word: str, known: Iterable[str], how_many: int = 3) -> str:
    """` (did you mean a, b?)` for the known words closest to `word`, or nothing when none is close."""
    close = closest(word, known, how_many)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def closest(word: str, known: Iterable[str], how_many: int = 3) -> list[str]:
    """The known words that `word` may have been meant for, the likeliest first."""
    return difflib.get_close_matches(word, list(known), n=how_many, cutoff=0.5)
