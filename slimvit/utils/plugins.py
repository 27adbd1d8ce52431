"""Plugins: entry points of the group `slimvit.plugins`, loaded when a word is unknown."""

from __future__ import annotations

from functools import cache

GROUP = "slimvit.plugins"


@cache
def load_plugins() -> None:
    """Import the modules that installed packages name as entry points `slimvit.plugins`, once per process.

    On import such a module registers its criterion, part, budget or export format.
    """
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP):
        entry.load()
