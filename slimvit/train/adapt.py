"""A classifier for the data's classes: trained on the frozen features first, on the whole network if asked."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimvit.models.base import TimmModule
from slimvit.models.modes import device_of
from slimvit.utils.progress import track

HEAD_BATCH = 256
HEAD_LR = 1e-2
HEAD_L2 = 1e-3
"""Weight of the squared weights in the loss."""


def fit_head(
    model: TimmModule,
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    epochs: int,
    seed: int,
    balanced: bool = False,
) -> nn.Module:
    """A copy of `model` with a new linear classifier for `num_classes` classes; nothing else changes.

    `features` [n, F]: what the network gives before its classifier, for the training images; `labels` [n]. The
    classifier is trained on standardised features (Adam, cosine, L2), then the scaling is folded into its weights.
    `balanced`: images are drawn, with replacement, so that every class comes equally often.
    """
    mean, std = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    weight, bias = _linear_probe((features - mean) / std, labels, num_classes, epochs, seed, balanced)
    weight = weight / std
    bias = bias - weight @ mean
    adapted = copy.deepcopy(model)
    adapted.reset_classifier(num_classes)
    found = adapted.get_classifier()
    for head in found if isinstance(found, tuple) else (found,):  # the distilled DeiT averages two
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
    return adapted.to(device_of(model))  # older timm puts a new classifier on the CPU


def _linear_probe(
    x: Tensor, labels: Tensor, classes: int, epochs: int, seed: int, balanced: bool = False
) -> tuple[Tensor, Tensor]:
    """Weight [classes, F] and bias [classes] by softmax regression on [n, F]."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=HEAD_LR)
    batches = -(-len(x) // HEAD_BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    with torch.enable_grad():
        for _ in track(range(epochs), "training the classifier", unit="epochs"):
            for index in _order(labels, balanced, generator).split(HEAD_BATCH):
                optimizer.zero_grad()
                loss = F.cross_entropy(x[index] @ weight.T + bias, labels[index])
                (loss + HEAD_L2 * weight.square().sum()).backward()
                optimizer.step()
                schedule.step()
    return weight.detach(), bias.detach()


def _order(labels: Tensor, balanced: bool, generator: torch.Generator) -> Tensor:
    """Indices [n] of an epoch: every image once, or drawn so that the classes come equally often."""
    if not balanced:
        return torch.randperm(len(labels), generator=generator)
    shares = 1 / labels.bincount()[labels]
    return torch.multinomial(shares, len(labels), replacement=True, generator=generator)
