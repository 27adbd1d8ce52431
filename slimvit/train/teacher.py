"""The teacher of a distillation: predictions, features and residual streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from slimvit.models.base import TimmModule
from slimvit.models.registry import attention_blocks, model_name
from slimvit.utils.errors import ModelError
from slimvit.utils.progress import track

Batches = Iterable[tuple[Tensor, Tensor]]
View = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Teacher:
    """A teacher network. It does not change.

    Attributes:
        model: The network.
        view: Converts the student's images [B, C, H, W] to the teacher's preprocessing
            (`slimvit.data.preprocessing.converter`).
        answers: Cached predictions [n, K] for the n training images. None runs the teacher in every step.
    """

    model: TimmModule
    view: View = lambda images: images
    answers: Tensor | None = None

    def on(self, device: torch.device) -> Teacher:
        """Return the teacher in eval mode on `device`."""
        return replace(self, model=self.model.to(device).eval())

    @torch.no_grad()
    def with_answers(self, batches: Batches, device: torch.device) -> Teacher:
        """Return the teacher with cached predictions for batches of all training images, in order, on `device`."""
        teacher = self.on(device)
        answers = [teacher.predictions(images.to(device)) for images, _ in track(batches, "running the teacher")]
        return replace(teacher, answers=torch.cat(answers))

    @torch.no_grad()
    def predictions(self, images: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Return logits [B, K], from the cache if the images' `numbers` [B] are given."""
        if self.answers is not None and numbers is not None:
            return self.answers[numbers]
        logits: Tensor = self.model(self.view(images))
        return logits

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return the features before the classifier [B, F]."""
        return features_of(self.model, self.view(images))

    @torch.no_grad()
    def streams(self, images: Tensor) -> list[Tensor]:
        """Return the residual stream [B, ..., C] after every block."""
        return run_with_streams(self.model, self.view(images))[1]


def features_of(model: TimmModule, images: Tensor) -> Tensor:
    """Return the features [B, F] of images [B, C, H, W] before the classifier."""
    features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    return features


def run_with_streams(model: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the model's output for images [B, C, H, W], and the residual stream [B, ..., C] after every block.

    Cutting does not change the width of the stream.
    """
    streams: list[Tensor] = []

    def hook(_: nn.Module, args: Any, output: Any) -> None:
        streams.append(output[0] if isinstance(output, tuple) else output)  # a dense block also returns its values

    with ExitStack() as stack:
        for view in attention_blocks(model):
            stack.callback(view.block.register_forward_hook(hook).remove)
        return model(images), streams


@torch.no_grad()
def check_same_streams(student: nn.Module, teacher: nn.Module, image: Tensor, teacher_image: Tensor) -> None:
    """Check that student and teacher have equally many blocks, with streams of the same shapes.

    Args:
        student: The student.
        teacher: The teacher.
        image: One image [1, C, H, W] of the student's input size.
        teacher_image: The same image in the teacher's preprocessing.

    Raises:
        ModelError: The streams differ.
    """
    student_streams = run_with_streams(student, image)[1]
    teacher_streams = run_with_streams(teacher, teacher_image)[1]
    if [s.shape for s in student_streams] != [t.shape for t in teacher_streams]:
        raise ModelError(
            f"distill_kind features: {model_name(teacher)} has {_described(teacher_streams)}, but "
            f"{model_name(student)} has {_described(student_streams)}; "
            "name a teacher with the same blocks, or use soft or hard"
        )


def _described(streams: list[Tensor]) -> str:
    return f"{len(streams)} blocks ending in a stream of {' x '.join(map(str, streams[-1].shape[1:]))}"
