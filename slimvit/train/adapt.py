"""Linear probe: a new classifier for the data's classes, trained on frozen features."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimvit.models.base import TimmModule
from slimvit.models.modes import device_of
from slimvit.train.state import classifiers
from slimvit.utils.progress import track

HEAD_BATCH = 256
HEAD_LR = 1e-2
HEAD_L2 = 1e-3
"""Factor of the L2 penalty in the loss."""


def fit_head(
    model: TimmModule,
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    epochs: int,
    seed: int,
    balanced: bool = False,
) -> nn.Module:
    """Copy a model and train a new linear classifier on its frozen features.

    The classifier is trained on standardised features (Adam, cosine schedule, L2). Its weights absorb the scaling.

    Args:
        model: The network; it does not change.
        features: Inputs of the classifier for the training images [n, F].
        labels: Classes of the training images [n].
        num_classes: Number of classes.
        epochs: Passes over the features.
        seed: Seed of the order of the images.
        balanced: Whether to draw images with replacement, so that all classes are equally frequent.
    """
    mean, std = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    weight, bias = _linear_probe((features - mean) / std, labels, num_classes, epochs, seed, balanced)
    weight = weight / std
    bias = bias - weight @ mean
    adapted = copy.deepcopy(model)
    adapted.reset_classifier(num_classes)
    for head in classifiers(adapted):
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
    return adapted.to(device_of(model))  # older timm creates a new classifier on the CPU


def _linear_probe(
    x: Tensor, labels: Tensor, classes: int, epochs: int, seed: int, balanced: bool = False
) -> tuple[Tensor, Tensor]:
    """Train a softmax regression on x [n, F]; returns weight [classes, F] and bias [classes]."""
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
    """Image indices [n] of an epoch: a permutation, or draws with equally frequent classes."""
    if not balanced:
        return torch.randperm(len(labels), generator=generator)
    weights = 1 / labels.bincount()[labels]
    return torch.multinomial(weights, len(labels), replacement=True, generator=generator)
