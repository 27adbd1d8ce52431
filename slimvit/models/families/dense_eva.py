"""Dense attention in timm's Eva, with either of its attentions."""

from __future__ import annotations

from timm.layers import AttentionRope
from timm.models.eva import EvaAttention, EvaBlock

from slimvit.models.dense.narrow import KeepsGamma, MixesBeforeAttending
from slimvit.models.families.eva import NarrowAttentionRope, NarrowEvaAttention


class DenseEvaAttention(MixesBeforeAttending, NarrowEvaAttention):  # type: ignore[misc]
    plain = EvaAttention
    narrow = NarrowEvaAttention


class DenseAttentionRope(MixesBeforeAttending, NarrowAttentionRope):  # type: ignore[misc]
    plain = AttentionRope
    narrow = NarrowAttentionRope


class DenseEvaBlock(KeepsGamma, EvaBlock):  # type: ignore[misc]
    plain = EvaBlock
