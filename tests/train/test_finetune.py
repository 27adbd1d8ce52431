from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import slimvit
from slimvit.config.recipe import DataSection
from slimvit.data.loaders import eval_loader, train_loader
from slimvit.data.preprocessing import preprocessing_of
from slimvit.data.sources import Data, open_data
from slimvit.data.subsets import draw
from slimvit.measure.accuracy import Accuracy, outputs_of
from slimvit.train.finetune import finetune
from slimvit.train.loop import TrainOptions
from slimvit.train.teacher import Teacher

Build = Callable[..., Any]


@pytest.fixture(scope="module")
def cut(trained: Any) -> Any:
    return slimvit.prune_model(trained, slimvit.plan_units(slimvit.score_parts(trained, (), "magnitude"), ratio=0.5))


def closeness(model: Any, original: Any, data: Data) -> Accuracy:
    images = eval_loader(data.val, preprocessing_of(original), 64)
    return slimvit.evaluate(model, images, outputs_of(original, images))


def test_the_teacher_stays_as_it_is_and_in_eval_mode(trained: Any, cut: Any, section: Build, loader: Build) -> None:
    teacher, modes = copy.deepcopy(trained), []
    teacher.register_forward_hook(lambda net, *_: modes.append((net.training, torch.is_grad_enabled())))
    finetune(cut, loader(cut, section(), images=64), section(), teacher=teacher, options=TrainOptions(lr=1e-3))
    assert modes == [(False, False)] * 2
    assert all(torch.equal(p, teacher.state_dict()[k]) for k, p in trained.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_a_cut_network_comes_back_to_the_teacher(
    trained: Any, cut: Any, section: Build, loader: Build, digits: Data
) -> None:
    before = closeness(cut, trained, digits)
    for classes in (10, 0):  # with a classifier, and by features alone
        teacher, student = copy.deepcopy(trained), copy.deepcopy(cut)
        if classes == 0:
            teacher.reset_classifier(0)
            student.reset_classifier(0)
        wanted = section(epochs=2, lr=5e-4)
        tuned, history = finetune(student, loader(student, wanted), wanted, teacher=teacher, labelled=False)
        assert history[-1]["loss"] < history[0]["loss"]
        assert closeness(tuned, teacher, digits).feature_error < before.feature_error


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("classes", [10, 0])
def test_mixing_goes_together_with_distillation(
    trained: Any, cut: Any, section: Build, digit_folder: Any, tmp_path: Any, labelled: bool, classes: int
) -> None:
    data = open_data(DataSection(name=str(digit_folder(tmp_path, 10, train=2, val=1, labelled=labelled))))
    student, teacher = copy.deepcopy(cut), copy.deepcopy(trained)
    for net in (student, teacher):
        net.reset_classifier(classes)
    wanted = section(mixup=0.8, cutmix=1.0, smoothing=0.1)
    images = train_loader(data.train, preprocessing_of(cut), wanted, 10)
    _, history = finetune(student, images, wanted, teacher=teacher, labelled=labelled, options=TrainOptions(lr=1e-4))
    assert 0 < history[0]["loss"] < 100


def test_the_defaults_do_no_harm(trained: Any, cut: Any, section: Build, loader: Build, digits: Data) -> None:
    tuned, _ = finetune(cut, loader(cut, section()), section(), teacher=trained)
    assert closeness(tuned, trained, digits).loss < closeness(cut, trained, digits).loss
    assert tuned.slim_plan == cut.slim_plan


@pytest.mark.parametrize(
    ("kind", "more"), [("soft", {}), ("hard", {}), ("soft", {"sampler": "balanced"}), ("hard", {"repeated_aug": 2})]
)
def test_a_teacher_that_is_asked_once_says_the_same(
    trained: Any, cut: Any, section: Build, loader: Build, digits: Data, kind: str, more: dict[str, Any]
) -> None:
    asked: list[int] = []
    trained = copy.deepcopy(trained)
    trained.register_forward_hook(lambda *_: asked.append(1))
    live = section(epochs=2, distill_kind=kind, **more)
    once = section(epochs=2, distill_kind=kind, cache_teacher=True, **more)
    in_order = eval_loader(draw(digits.train, 64, 0), preprocessing_of(cut), 64)
    wanted, rows = finetune(cut, loader(cut, live, images=64), live, teacher=trained, options=TrainOptions(lr=1e-4))
    before = len(asked)
    kept = Teacher(trained).with_answers(in_order, torch.device("cpu"))
    model, history = finetune(cut, loader(cut, once, images=64), once, teacher=kept, options=TrainOptions(lr=1e-4))
    assert len(asked) == before + 1 and before == 4
    assert [row["loss"] for row in history] == pytest.approx([row["loss"] for row in rows], rel=1e-5)


@pytest.mark.parametrize("change", [{"hflip": 0.5}, {"crop_scale": 0.7}, {"mixup": 0.8}, {"distill": False}])
def test_only_images_as_they_are_have_one_answer(section: Build, change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="cache_teacher"):
        section(cache_teacher=True, **change)
