"""An accuracy figure: the expected calibration error (Guo et al., 2017, https://arxiv.org/abs/1706.04599)."""

from __future__ import annotations

import torch

from slimvit.measure.accuracy import Outputs
from slimvit.report.columns import Metric, register_metric

BINS = 10


def calibration_error(outputs: Outputs, original: Outputs | None) -> float | None:
    """Return the mean gap between confidence and accuracy over bins of equal width, in per cent.

    Args:
        outputs: Logits [n, K], features [n, F] and labels [n] of the model.
        original: Outputs of the original model, for figures that compare with it; None for the original itself.
    """
    if outputs.logits is None or outputs.labels is None:
        return None
    confidence, predicted = outputs.logits.double().softmax(dim=1).max(dim=1)
    gap = (predicted == outputs.labels).double() - confidence
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    return 100 * torch.zeros(BINS, dtype=gap.dtype).index_add(0, bins, gap).abs().sum().item() / len(gap)


register_metric(
    Metric(
        key="calibration_error",
        header="calibration error",
        format=".1f",
        axis="expected calibration error (%)",
        legend="calibration error: mean distance of confidence and accuracy over ten bins, per cent",
        higher_is_better=False,
    ),
    calibration_error,
)
