"""What slimvit needs to know about one part of a block that can be cut. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One kind of unit that can be removed from a block, such as attention heads."""

    name: str
    """The word in recipes, `--parts` and every dict by part."""
    unit: str
    """One unit, in words."""
    units: str
    """Several of them; plans keep them under this key and `kept_` + this key."""
