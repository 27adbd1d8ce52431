"""The training loss: labels, distillation from a teacher, or both."""

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
"""(student, images, their numbers where answers are kept) -> the student's output, mean loss against the teacher."""


def soft_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Distillation loss T^2 KL(teacher || student) at temperature T, mean over images.

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
    """Squared error of features [B, F] divided by the variance of the teacher's in the batch."""
    student, teacher = student.float(), teacher.float()  # bf16 would lose most of the squares
    return (student - teacher).square().sum() / (teacher - teacher.mean(0)).square().sum().clamp_min(1e-12)


def stream_gap(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """`feature_gap` of the residual streams [B, ..., C], token by token, mean over blocks."""
    gaps = [feature_gap(s.flatten(0, -2), t.flatten(0, -2)) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(gaps).mean()


def training_loss(section: TrainSection, teacher: Teacher | None, labelled: bool, has_classifier: bool) -> Loss:
    """The loss of a training section.

    Args:
        section: The training's settings.
        teacher: The network to learn from, if any. With `teacher.answers` the loss expects targets [B, 2]: the label
            and the number of each image.
        labelled: Whether the data has labels. Without labels the loss is distillation alone.
        has_classifier: Whether the student has a classifier. Without one it learns the teacher's features.

    Raises:
        DataError: There is nothing to learn from.
    """
    if isinstance(section, FinetuneSection) and section.distill and teacher is not None:
        return _with_labels(section, _distillation(section, teacher, has_classifier), labelled and has_classifier)
    if not (labelled and has_classifier):
        lacking = "the data has no labels" if has_classifier else "the model has no classifier"
        raise DataError(
            f"{lacking}, so only an uncut network can teach: fine-tune a model that is or was cut, without --no-distill"
        )
    return lambda model, images, targets: F.cross_entropy(
        model(images), _without_numbers(targets, section), label_smoothing=section.smoothing
    )


def _without_numbers(targets: Tensor, section: TrainSection) -> Tensor:
    return targets[:, 0] if section.numbered else targets


def _with_labels(section: FinetuneSection, distillation: DistillLoss, use_labels: bool) -> Loss:
    """The weighted sum of distillation and cross-entropy, or distillation alone."""

    def loss(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        numbers = targets[:, 1] if section.numbered else None
        output, learnt = distillation(model, images, numbers)
        if not use_labels:
            return learnt
        wanted = _without_numbers(targets, section)
        labels = F.cross_entropy(output, wanted, label_smoothing=section.smoothing)
        return (1 - section.distill_weight) * labels + section.distill_weight * learnt

    return loss


def _distillation(section: FinetuneSection, teacher: Teacher, has_classifier: bool) -> DistillLoss:
    """The loss against the teacher, by `distill_kind`."""

    def soft(model: nn.Module, images: Tensor, numbers: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = model(images)
        return logits, soft_kl(logits, teacher.predictions(images, numbers), section.temperature)

    def hard(model: nn.Module, images: Tensor, numbers: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = model(images)
        return logits, F.cross_entropy(logits, teacher.predictions(images, numbers).argmax(-1))

    def streams(model: nn.Module, images: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
        logits, mine = run_with_streams(model, images)
        return logits, stream_gap(mine, teacher.streams(images))

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
