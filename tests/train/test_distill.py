from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimvit.config.recipe import AdaptSection, FinetuneSection
from slimvit.train.distill import feature_gap, soft_kl, stream_gap, training_loss
from slimvit.train.teacher import Teacher, run_with_streams
from slimvit.utils.errors import DataError


class Net(nn.Module):
    """Features = images; the classifier is a fixed matrix."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward_features(self, x: Tensor) -> Tensor:
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else x @ self.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(x)


@pytest.fixture
def nets() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    return Net(torch.randn(6, 4, generator=generator)), Net(torch.randn(6, 4, generator=generator))


IMAGES = torch.linspace(-1, 1, 18).view(3, 6)
LABELS = torch.tensor([0, 3, 1])


def test_soft_kl_by_hand() -> None:
    t = 2.0
    p = [math.exp(1 / t) / (math.exp(1 / t) + 1), 1 / (math.exp(1 / t) + 1)]
    q = [1 / (math.exp(3 / t) + 1), math.exp(3 / t) / (math.exp(3 / t) + 1)]
    wanted = t**2 * sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    one = soft_kl(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]), t)
    assert one.item() == pytest.approx(wanted, rel=1e-5)
    two = soft_kl(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 3.0], [0.0, 3.0]]), t)
    assert two.item() == pytest.approx(wanted / 2, rel=1e-5)


def test_the_gap_between_features_is_relative_to_their_variance() -> None:
    features = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    assert feature_gap(features, features) == 0
    assert feature_gap(features.mean(0).expand(8, 5), features).item() == pytest.approx(1, rel=1e-5)
    once, thrice = feature_gap(features, features.flip(0)), feature_gap(3 * features, 3 * features.flip(0))
    assert thrice.item() == pytest.approx(once.item())


def test_labels_and_teacher_share_the_loss(nets: tuple[Any, Any]) -> None:
    student, teacher = nets
    section = FinetuneSection(distill_weight=0.3, temperature=4.0, smoothing=0.1)
    found = training_loss(section, Teacher(teacher), True, True)(student, IMAGES, LABELS)
    labels = F.cross_entropy(student(IMAGES), LABELS, label_smoothing=0.1)
    soft = soft_kl(student(IMAGES), teacher(IMAGES), 4.0)
    assert found.item() == pytest.approx((0.7 * labels + 0.3 * soft).item())


def test_soft_targets_are_labels_too(nets: tuple[Any, Any]) -> None:
    student, teacher = nets
    hard = F.one_hot(LABELS, 4).float()
    for section, who in (
        (FinetuneSection(), Teacher(teacher)),
        (FinetuneSection(distill=False), Teacher(teacher)),
        (AdaptSection(), None),
    ):
        loss = training_loss(section, who, True, True)
        assert loss(student, IMAGES, hard).item() == pytest.approx(loss(student, IMAGES, LABELS).item())
        mixed = 0.25 * hard + 0.75 * hard.flip(0)
        assert loss(student, IMAGES, mixed).item() != pytest.approx(loss(student, IMAGES, LABELS).item())


def test_without_labels_only_the_teacher_counts(nets: tuple[Any, Any]) -> None:
    student, teacher = nets
    found = training_loss(FinetuneSection(temperature=3.0), Teacher(teacher), False, True)(
        student, IMAGES, LABELS * 0 - 1
    )
    assert torch.equal(found, soft_kl(student(IMAGES), teacher(IMAGES), 3.0))


def test_without_a_classifier_features_count(nets: tuple[Any, Any]) -> None:
    student, teacher = nets
    for labelled in (True, False):
        assert training_loss(FinetuneSection(), Teacher(teacher), labelled, False)(student, IMAGES, LABELS) == 0


def test_the_teacher_gets_no_gradient(nets: tuple[Any, Any]) -> None:
    student, teacher = nets
    training_loss(FinetuneSection(), Teacher(teacher), True, True)(student, IMAGES, LABELS).backward()
    assert student.weight.grad is not None and teacher.weight.grad is None


@pytest.mark.parametrize(
    ("labelled", "classifier", "said"), [(False, True, "no labels"), (True, False, "no classifier")]
)
def test_something_must_be_there_to_learn_from(
    nets: tuple[Any, Any], labelled: bool, classifier: bool, said: str
) -> None:
    for section, teacher in (
        (FinetuneSection(distill=False), Teacher(nets[1])),
        (FinetuneSection(), None),
        (AdaptSection(), Teacher(nets[1])),
    ):
        with pytest.raises(DataError, match=f"{said}.*without --no-distill"):
            training_loss(section, teacher, labelled, classifier)


def test_hard_distillation_learns_the_teachers_best_class(nets: tuple[Any, Any]) -> None:
    student, teacher = nets
    section = FinetuneSection(distill_kind="hard", distill_weight=0.3, smoothing=0.1)
    best = teacher(IMAGES).argmax(1)
    found = training_loss(section, Teacher(teacher), True, True)(student, IMAGES, LABELS)
    labels = F.cross_entropy(student(IMAGES), LABELS, label_smoothing=0.1)
    assert found.item() == pytest.approx((0.7 * labels + 0.3 * F.cross_entropy(student(IMAGES), best)).item())
    alone = training_loss(section, Teacher(teacher), False, True)(student, IMAGES, LABELS * 0 - 1)
    assert alone.item() == pytest.approx(F.cross_entropy(student(IMAGES), best).item())
    with pytest.raises(DataError, match="no classifier, so it cannot learn classes; use distill_kind features"):
        training_loss(section, Teacher(teacher), True, False)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("classes", [5, 0])
def test_streams_can_be_learnt_with_and_without_labels(vit: Any, images: Any, labelled: bool, classes: int) -> None:
    student, teacher = vit(seed=0, num_classes=classes), vit(seed=1, num_classes=classes)
    pictures, targets = images(student, 3), LABELS if labelled else LABELS * 0 - 1
    section = FinetuneSection(distill_kind="features", distill_weight=0.25)
    found = training_loss(section, Teacher(teacher), labelled, bool(classes))(student, pictures, targets)
    streams = stream_gap(run_with_streams(student, pictures)[1], run_with_streams(teacher, pictures)[1])
    wanted = streams
    if labelled and classes:
        wanted = 0.75 * F.cross_entropy(student(pictures), targets) + 0.25 * streams
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    found.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student.blocks[0].attn.qkv.weight.grad.any()


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_teacher_sees_the_images_as_it_wants_them(nets: tuple[Any, Any], kind: str) -> None:
    student, teacher = nets
    section = FinetuneSection(distill_kind=kind, distill_weight=1.0)
    through = training_loss(section, Teacher(teacher, lambda images: -2 * images), True, True)(student, IMAGES, LABELS)
    louder = Net(-2 * teacher.weight.detach())
    assert through.item() == pytest.approx(
        training_loss(section, Teacher(louder), True, True)(student, IMAGES, LABELS).item()
    )
    assert through.item() != pytest.approx(
        training_loss(section, Teacher(teacher), True, True)(student, IMAGES, LABELS).item()
    )
