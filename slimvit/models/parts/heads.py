"""Attention heads."""

from __future__ import annotations

from slimvit.models.parts.base import Part

HEADS = Part(name="heads", unit="head", units="heads")
