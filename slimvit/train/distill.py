"""The training loss: labels, what a teacher has to say, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimvit.config.recipe import FinetuneSection
from slimvit.config.training import TrainSection
from slimvit.models.base import TimmModule
from slimvit.train.streams import run_with_streams
from slimvit.utils.errors import DataError
from slimvit.utils.progress import track

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(student, images [B, C, H, W], targets [B] or soft [B, K]) -> mean loss."""
DistillLoss = Callable[[nn.Module, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""(student, images, their numbers where the answers are cached) -> what the student gives, mean loss against what the
teacher gives."""
Batches = Iterable[tuple[Tensor, Tensor]]
View = Callable[[Tensor], Tensor]

T = TypeVar("T")


def soft_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) at temperature T, mean over images (Hinton, Vinyals, Dean 2015). [B, K] twice."""
    log_p = F.log_softmax(student / temperature, dim=-1)
    log_q = F.log_softmax(teacher / temperature, dim=-1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def feature_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of features [B, F] over their variance in the batch."""
    student, teacher = student.float(), teacher.float()  # squares lose most of what bf16 has
    return (student - teacher).square().sum() / (teacher - teacher.mean(0)).square().sum().clamp_min(1e-12)


def stream_gap(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """:func:`feature_gap` of the residual streams [B, ..., C] after every block, token by token, mean over blocks."""
    gaps = [feature_gap(s.flatten(0, -2), t.flatten(0, -2)) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(gaps).mean()


@torch.no_grad()
def answers_of(teacher: nn.Module, batches: Batches, see: View, device: torch.device) -> Tensor:
    """What the teacher predicts [n, K] for images [B, C, H, W] in order, on ``device``."""
    found = [teacher(see(images.to(device))) for images, _ in track(batches, "asking the teacher")]
    return torch.cat(found)


def training_loss(
    section: TrainSection,
    teacher: nn.Module | None,
    labelled: bool,
    has_classifier: bool,
    see: View = lambda images: images,
    answers: Tensor | None = None,
) -> Loss:
    """The loss that a section asks for.

    ``see``: a batch of the student's as the teacher wants it. ``answers``: what the teacher predicts [n, K] for the
    training images, where it need not be asked again; the loss then wants labels with the numbers of the images,
    [B, 2]. Without labels the teacher is all there is to learn from; without a classifier, its features. Raises
    :class:`DataError` when there is nothing to learn from.
    """
    if isinstance(section, FinetuneSection) and section.distill and teacher is not None:
        return _distillation(section, _lesson(section, teacher, has_classifier, see, answers), labelled, has_classifier)
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


def _distillation(section: FinetuneSection, lesson: DistillLoss, labelled: bool, has_classifier: bool) -> Loss:
    """The lesson, and the labels where there are any."""

    def loss(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        numbers = targets[:, 1] if section.numbered else None
        output, learnt = lesson(model, images, numbers)
        if not (labelled and has_classifier):
            return learnt
        wanted = _without_numbers(targets, section)
        labels = F.cross_entropy(output, wanted, label_smoothing=section.smoothing)
        return (1 - section.distill_weight) * labels + section.distill_weight * learnt

    return loss


def _lesson(
    section: FinetuneSection, teacher: nn.Module, has_classifier: bool, see: View, answers: Tensor | None
) -> DistillLoss:
    """What the teacher has to say, by ``distill_kind``."""

    def predictions(images: Tensor, numbers: Tensor | None) -> Tensor:
        return _ask(_predict, teacher, see(images)) if answers is None or numbers is None else answers[numbers]

    def soft(model: nn.Module, images: Tensor, numbers: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = model(images)
        return logits, soft_kl(logits, predictions(images, numbers), section.temperature)

    def hard(model: nn.Module, images: Tensor, numbers: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = model(images)
        return logits, F.cross_entropy(logits, predictions(images, numbers).argmax(-1))

    def streams(model: nn.Module, images: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
        logits, mine = run_with_streams(model, images)
        return logits, stream_gap(mine, _ask(run_with_streams, teacher, see(images))[1])

    def last_features(model: nn.Module, images: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
        features = _features(model, images)
        return features, feature_gap(features, _ask(_features, teacher, see(images)))

    if section.distill_kind == "features":
        return streams
    if has_classifier:
        return soft if section.distill_kind == "soft" else hard
    if section.distill_kind == "hard":
        raise DataError("the model has no classifier, so it cannot learn classes; use distill_kind features")
    return last_features


def _features(model: TimmModule, images: Tensor) -> Tensor:
    return model.forward_head(model.forward_features(images), pre_logits=True)


def _predict(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


def _ask(question: Callable[[nn.Module, Tensor], T], teacher: nn.Module, images: Tensor) -> T:
    with torch.no_grad():
        return question(teacher, images)
