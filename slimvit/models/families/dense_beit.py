"""Dense attention in timm's Beit."""

from __future__ import annotations

from timm.models.beit import Attention, Block

from slimvit.models.dense.narrow import KeepsGamma, MixesBeforeAttending
from slimvit.models.families.beit import NarrowBeitAttention


class DenseBeitAttention(MixesBeforeAttending, NarrowBeitAttention):  # type: ignore[misc]
    plain = Attention
    narrow = NarrowBeitAttention


class DenseBeitBlock(KeepsGamma, Block):  # type: ignore[misc]
    plain = Block
