"""The order of a model's classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from slimvit.models.base import TimmModule


@torch.no_grad()
def reorder_classes(model: TimmModule, before: Sequence[str], after: Sequence[str]) -> None:
    """Permute the outputs of a model in place, from the class order `before` to the class order `after`."""
    indices = [list(before).index(name) for name in after]
    classifier = model.get_classifier()
    for head in classifier if isinstance(classifier, tuple) else (classifier,):  # the distilled DeiT has two
        for parameter in head.parameters():
            parameter.copy_(parameter[indices].clone())
    model.class_names = tuple(after)
