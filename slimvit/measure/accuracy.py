"""Accuracy of a model, and its closeness to the original: same predictions, same features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimvit.models.modes import device_of, evaluating
from slimvit.utils.errors import DataError, ModelError
from slimvit.utils.plugins import load_plugins
from slimvit.utils.progress import track

AT_ONCE = 1_000
"""Number of images compared at once in float64, which bounds the memory of a comparison."""


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model for every image of a loader, on the CPU."""

    logits: Tensor | None
    """[n, K] float32; None for a model without classifier."""
    features: Tensor
    """[n, F] float32, the classifier's input."""
    labels: Tensor | None
    """[n] int64; None when the images have no labels."""


def is_guessing(top1: float, classes: int, images: int) -> bool:
    """Return whether an accuracy (per cent) cannot be told from that of guessing, or lies below it."""
    chance = 1 / classes
    noise = 2 * (chance * (1 - chance) / images) ** 0.5
    return top1 / 100 <= chance + min(noise, 0.2 * chance)


@dataclass(frozen=True)
class Accuracy:
    """Accuracy figures of a model. A figure that was not, or cannot be, measured is None, never 0.

    A new figure is a field here, or a function in `FIGURES`, and a `Metric` in `slimvit.report.columns`.
    """

    images: int
    top1: float | None = None
    """Per cent."""
    top5: float | None = None
    """Per cent; None with fewer than 6 classes, where it says nothing."""
    loss: float | None = None
    """Mean cross-entropy, nats."""
    agreement: float | None = None
    """Images with the same prediction as the original's, per cent."""
    feature_error: float | None = None
    """Squared distance to the original's features over their variance: 0 is equal, 1 is as far as their mean."""
    feature_cosine: float | None = None
    """Mean cosine similarity to the original's features."""
    added: dict[str, float | None] = field(default_factory=dict)
    """The figures of `FIGURES`, by key."""

    @property
    def figures(self) -> dict[str, float | None]:
        """All figures by key."""
        return {key: value for key, value in vars(self).items() if key not in ("images", "added")} | self.added


FIGURES: dict[str, Callable[[Outputs, Outputs | None], float | None]] = {}
"""Figures added by `slimvit.report.columns.register_metric`: from the outputs of a model and of its original."""


def outputs_of(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device | str | None = None,
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Outputs:
    """Run a model in eval mode on every batch and restore its training flags.

    Args:
        model: A timm model.
        loader: Batches (images [B, C, H, W], labels [B]); label -1 means none.
        device: Device of the model; that of its first parameter by default.
        gather: Joins the rows of all processes, where several split the images.

    Raises:
        DataError: There are no images, a label is outside the classes, or only some images have labels.
        ModelError: The outputs are not finite, or not one row of class scores per image.
    """
    net: Any = model
    target = torch.device(device) if device is not None else device_of(model)
    total = length_hint(loader) or None
    logits, features, labels = _Rows(total), _Rows(total), _Rows(total)
    with evaluating(model):
        for images, targets in track(loader, "evaluating", total):
            tokens = net.forward_features(images.to(target, non_blocking=True))
            features.add(gather(net.forward_head(tokens, pre_logits=True).flatten(1).float()))
            labels.add(gather(torch.as_tensor(targets).long().to(target)))
            if getattr(net, "num_classes", 0) != 0:
                logits.add(gather(net.forward_head(tokens).float()))
                _check_logits(logits.last)
            _check_labels(labels.last, logits.last.shape[1] if logits.count else None)
    if not features.count:
        raise DataError("there is not one image to evaluate on; check the data folder, the split and eval_images")
    return Outputs(logits.all() if logits.count else None, _finite(features.all()), _complete(labels.all()))


class _Rows:
    """Rows of many batches in one CPU tensor, allocated with the first batch.

    One allocation neither keeps a batch's larger tensors alive nor fragments the memory.
    """

    def __init__(self, batches: int | None) -> None:
        self.batches = batches or 1
        self.count = 0
        self.buffer = self.last = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        needed = self.count + len(rows)
        with torch.inference_mode(False):  # inference tensors could not be trained on afterwards
            if self.count == 0:
                self.buffer = torch.empty(self.batches * needed, *rows.shape[1:], dtype=rows.dtype)
            elif needed > len(self.buffer):
                self.buffer = torch.cat(
                    [self.buffer[: self.count], torch.empty(needed, *rows.shape[1:], dtype=rows.dtype)]
                )
        self.buffer[self.count : needed] = rows
        self.last, self.count = rows, needed

    def all(self) -> Tensor:
        return self.buffer[: self.count]


def compare(outputs: Outputs, original: Outputs | None = None) -> Accuracy:
    """Compute the accuracy figures of a model from its outputs.

    Args:
        outputs: The outputs of the model.
        original: The outputs of its original for the same images in the same order.

    Raises:
        DataError: The features of both differ in shape.
    """
    load_plugins()
    closeness = {} if original is None else _closeness(outputs, original)
    added = {key: figure(outputs, original) for key, figure in FIGURES.items()}
    return Accuracy(len(outputs.features), **_scores(outputs), **closeness, added=added)


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 2:
        raise ModelError(
            f"the model gives outputs of shape {list(logits.shape)}, but one row of class scores per image, "
            "[images, classes], is needed; create it with a global_pool that pools the tokens"
        )


def _check_labels(labels: Tensor, classes: int | None) -> None:
    wrong = labels[(labels < -1) | (labels >= classes)] if classes is not None else labels[labels < -1]
    if len(wrong):
        allowed = "0 and up" if classes is None else f"0-{classes - 1}"
        raise DataError(
            f"an image has label {int(wrong[0])}, but the model has classes {allowed} (-1 = no label); "
            "use the data set the classifier was made for, or adapt the classifier to this one"
        )


def _complete(labels: Tensor) -> Tensor | None:
    """Return the labels; None where no image has one."""
    missing = int((labels == -1).sum())
    if 0 < missing < len(labels):
        raise DataError(f"{missing} of {len(labels)} images have no label (-1); label all images or none")
    return None if missing else labels


def _finite(features: Tensor) -> Tensor:
    bad = sum(int((~rows.isfinite().all(dim=1)).sum()) for (rows,) in _by_rows(features))
    if bad:
        raise ModelError(
            f"the model gives NaN or infinite features for {bad} of {len(features)} images; "
            "if it was trained just now, lower the learning rate, otherwise check its weights"
        )
    return features


def _scores(outputs: Outputs) -> dict[str, float | None]:
    logits, labels = outputs.logits, outputs.labels
    if logits is None or labels is None:
        return {}
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    loss = 0.0
    for rows, targets in _by_rows(logits, labels):
        loss += F.cross_entropy(rows.double(), targets, reduction="sum").item()
    return {
        "top1": _per_cent(best[:, 0]),
        "top5": _per_cent(best.any(dim=1)) if logits.shape[1] > 5 else None,
        "loss": loss / len(labels),
    }


def _closeness(outputs: Outputs, original: Outputs) -> dict[str, float | None]:
    shapes = [list(o.features.shape) for o in (outputs, original)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"features {shapes[0]} cannot be compared with the original's {shapes[1]}; "
            "evaluate both models on the same images"
        )
    images = len(original.features)
    mean = sum(rows.double().sum(dim=0) for (rows,) in _by_rows(original.features)) / images
    variance = distance = cosine = 0.0
    for own_rows, original_rows in _by_rows(outputs.features, original.features):
        own, uncut = own_rows.double(), original_rows.double()
        variance += (uncut - mean).square().sum().item()
        distance += (own - uncut).square().sum().item()
        cosine += F.cosine_similarity(own, uncut, dim=1).sum().item()
    figures: dict[str, float | None] = {
        "feature_error": distance / variance if variance > 0 else None,
        "feature_cosine": cosine / images,
    }
    if outputs.logits is not None and original.logits is not None and outputs.logits.shape == original.logits.shape:
        figures["agreement"] = _per_cent(outputs.logits.argmax(dim=1) == original.logits.argmax(dim=1))
    return figures


def _by_rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Return the rows of all tensors side by side, `AT_ONCE` at a time."""
    return zip(*(tensor.split(AT_ONCE) for tensor in tensors), strict=True)


def _per_cent(hits: Tensor) -> float:
    return 100.0 * hits.double().mean().item()
