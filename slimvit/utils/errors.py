"""Errors that users can cause. The message is one line: the thing, the value, what is allowed, what to do next.

The command line prints the message and exits with code 1. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SlimvitError(Exception):
    """The user's input does not work. The message says why, and what would work."""

    exit_code = 1


class ModelError(SlimvitError):
    """The model is unknown or not supported, or its weights do not fit."""


class DataError(SlimvitError):
    """Images or labels are missing, unreadable, or do not fit the model."""


class PlanError(SlimvitError):
    """A plan, ratio or budget does not fit the model."""


class RecipeError(SlimvitError):
    """A recipe has unknown keys, bad values or contradictions."""


class StoreError(SlimvitError):
    """A run folder is incomplete or damaged, or would be overwritten."""


class DiskError(StoreError):
    """The disk is full, read-only or failing."""


class WorkerError(SlimvitError):
    """A process that loads images has died."""


def nearest(word: str, known: Iterable[str], how_many: int = 3) -> str:
    """Return ` (did you mean a, b?)` with the known words closest to `word`; empty where none is close."""
    close = closest(word, known, how_many)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def closest(word: str, known: Iterable[str], how_many: int = 3) -> list[str]:
    """Return the known words closest to `word`, the closest first."""
    return difflib.get_close_matches(word, list(known), n=how_many, cutoff=0.5)


def name_list(words: Iterable[str], most: int = 5) -> str:
    """Join words, at most `most` of them: `a, b, c and 7 more`."""
    listed = list(words)
    more = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {more} more" if more > 0 else "")
