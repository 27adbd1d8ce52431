"""Training losses: cross-entropy, distillation from a teacher, or both."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimvit.config.recipe import FinetuneSection
from slimvit.config.training import TrainSection
from slimvit.train.teacher import Teacher, features_of, run_with_streams
from slimvit.utils.errors import DataError

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(student, images [B, C, H, W], targets [B] or soft [B, K]) -> mean loss."""
DistillLoss = Callable[[nn.Module, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""(student, images, image numbers or None) -> the student's output, mean distillation loss.

Image numbers index the teacher's cached predictions."""


def soft_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute the distillation loss T^2 KL(teacher || student) at temperature T, mean over images.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015).

    Args:
        student: Logits [B, K].
        teacher: Logits [B, K].
        temperature: Divisor T of both logits.
    """
    log_p = F.log_softmax(student / temperature, dim=-1)
    log_q = F.log_softmax(teacher / temperature, dim=-1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def feature_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the squared error of features [B, F], relative to the variance of the teacher's in the batch."""
    student, teacher = student.float(), teacher.float()  # bf16 is too coarse for sums of squares
    return (student - teacher).square().sum() / (teacher - teacher.mean(0)).square().sum().clamp_min(1e-12)


def stream_gap(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Compute `feature_gap` of the residual streams [B, ..., C] over tokens, mean over blocks."""
    gaps = [feature_gap(s.flatten(0, -2), t.flatten(0, -2)) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(gaps).mean()


def training_loss(section: TrainSection, teacher: Teacher | None, labelled: bool, has_classifier: bool) -> Loss:
    """Return the loss of a training section.

    Args:
        section: The training's settings.
        teacher: The teacher, if any. With `teacher.answers` the loss expects targets [B, 2]: label and number of each
            image.
        labelled: Whether the data has labels. Without labels the loss is distillation alone.
        has_classifier: Whether the student has a classifier. Without one it learns the teacher's features.

    Raises:
        DataError: Labels or classifier are missing, and there is no teacher.
    """
    if isinstance(section, FinetuneSection) and section.distill and teacher is not None:
        return _with_labels(section, _distillation(section, teacher, has_classifier), labelled and has_classifier)
    if not (labelled and has_classifier):
        reason = "the data has no labels" if has_classifier else "the model has no classifier"
        raise DataError(
            f"{reason}, so only an uncut network can teach: fine-tune a model that is or was cut, without --no-distill"
        )
    return lambda model, images, targets: F.cross_entropy(
        model(images), _labels(targets, section), label_smoothing=section.smoothing
    )


def _labels(targets: Tensor, section: TrainSection) -> Tensor:
    """The labels in the targets, without image numbers."""
    return targets[:, 0] if section.numbered else targets


def _with_labels(section: FinetuneSection, distillation: DistillLoss, use_labels: bool) -> Loss:
    """The weighted sum of distillation and cross-entropy, or distillation alone."""

    def loss(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        numbers = targets[:, 1] if section.numbered else None
        output, distill_loss = distillation(model, images, numbers)
        if not use_labels:
            return distill_loss
        label_loss = F.cross_entropy(output, _labels(targets, section), label_smoothing=section.smoothing)
        return (1 - section.distill_weight) * label_loss + section.distill_weight * distill_loss

    return loss


def _distillation(section: FinetuneSection, teacher: Teacher, has_classifier: bool) -> DistillLoss:
    """The distillation loss of `distill_kind`."""

    def soft(model: nn.Module, images: Tensor, numbers: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = model(images)
        return logits, soft_kl(logits, teacher.predictions(images, numbers), section.temperature)

    def hard(model: nn.Module, images: Tensor, numbers: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = model(images)
        return logits, F.cross_entropy(logits, teacher.predictions(images, numbers).argmax(-1))

    def streams(model: nn.Module, images: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
        logits, student_streams = run_with_streams(model, images)
        return logits, stream_gap(student_streams, teacher.streams(images))

    def last_features(model: nn.Module, images: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
        features = features_of(model, images)
        return features, feature_gap(features, teacher.features(images))

    if section.distill_kind == "features":
        return streams
    if has_classifier:
        return soft if section.distill_kind == "soft" else hard
    if section.distill_kind == "hard":
        raise DataError("the model has no classifier, so it cannot learn classes; use distill_kind features")
    return last_features
