"""The training loss: labels, the uncut network's predictions, or both; features where there is no classifier."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimvit.errors import DataError
from slimvit.models.family import TimmModule
from slimvit.recipe import FinetuneSection, TrainSection

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(student, images [B, C, H, W], targets [B] or soft [B, K]) -> mean loss."""


def soft_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) at temperature T, mean over images (Hinton, Vinyals, Dean 2015). [B, K] twice."""
    log_p = F.log_softmax(student / temperature, dim=-1)
    log_q = F.log_softmax(teacher / temperature, dim=-1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def feature_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of features [B, F] over their variance in the batch."""
    return (student - teacher).square().sum() / (teacher - teacher.mean(0)).square().sum().clamp_min(1e-12)


def training_loss(section: TrainSection, teacher: nn.Module | None, labelled: bool, has_classifier: bool) -> Loss:
    """The loss that a section asks for.

    Without labels the teacher's predictions are all there is to learn; without a classifier, its features. Raises
    :class:`DataError` when there is nothing to learn from.
    """
    if isinstance(section, FinetuneSection) and section.distill and teacher is not None:
        return _distillation(section, teacher, labelled, has_classifier)
    if not (labelled and has_classifier):
        lacking = "the data has no labels" if has_classifier else "the model has no classifier"
        raise DataError(
            f"{lacking}, so only an uncut network can teach: fine-tune a model that is or was cut, without --no-distill"
        )
    return lambda model, images, targets: F.cross_entropy(model(images), targets, label_smoothing=section.smoothing)


def _distillation(section: FinetuneSection, teacher: nn.Module, labelled: bool, has_classifier: bool) -> Loss:
    if not has_classifier:
        return lambda model, images, targets: feature_gap(_features(model, images), _ask(_features, teacher, images))
    if not labelled:
        return lambda model, images, targets: soft_kl(
            model(images), _ask(_predict, teacher, images), section.temperature
        )

    def both(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        logits = model(images)
        labels = F.cross_entropy(logits, targets, label_smoothing=section.smoothing)
        soft = soft_kl(logits, _ask(_predict, teacher, images), section.temperature)
        return (1 - section.distill_weight) * labels + section.distill_weight * soft

    return both


def _features(model: TimmModule, images: Tensor) -> Tensor:
    return model.forward_head(model.forward_features(images), pre_logits=True)


def _predict(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


def _ask(question: Callable[[nn.Module, Tensor], Tensor], teacher: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return question(teacher, images)
