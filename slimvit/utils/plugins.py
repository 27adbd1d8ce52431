"""Packages that extend slimvit: their entry points of the group `slimvit.plugins`, loaded when a word is not known."""

from __future__ import annotations

from functools import cache

GROUP = "slimvit.plugins"


@cache
def load_plugins() -> None:
    """Import every module that an installed package names under `slimvit.plugins`, once a process.

    Such a module registers what it adds (a criterion, a part, a budget, an export format) when it is imported.
    """
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP):
        entry.load()
