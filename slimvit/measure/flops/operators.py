"""Names of the traced operators that need no multiply-accumulates of their own, or are counted as norms."""

from __future__ import annotations

NORMS = frozenset({"layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm"})
"""Counted by fvcore (some operations an element), left out by every other counter."""

_ARITHMETIC = "abs add add_ addcmul addcmul_ ceil clamp_min cos div div_ exp log mul mul_ neg pow reciprocal rsqrt "
_ARITHMETIC += "rsub sin sqrt sub sub_"
_ACTIVATIONS = "elu gelu hardsigmoid hardswish hardtanh hardtanh_ leaky_relu log_softmax mish relu6 sigmoid silu "
_ACTIVATIONS += "silu_ softmax softplus tanh"
_REDUCTIONS = "all amax amin any cumsum linalg_vector_norm max_pool2d mean min norm prod std sum var"
_SHAPES = "alias bernoulli clone dropout_ empty_like expand_as feature_dropout fill_ flip index_select lift_fresh "
_SHAPES += "linspace logical_not lt masked_fill_ meshgrid movedim ne numel ones_like pad repeat repeat_interleave "
_SHAPES += "reshape_as rot90 select_scatter tile unflatten unfold where zero_"

ELEMENTWISE = frozenset(f"aten::{name}" for name in f"{_ARITHMETIC} {_ACTIVATIONS} {_REDUCTIONS} {_SHAPES}".split())
"""Skipped without a word: elementwise work, reductions, and moving data."""
