"""The type of criteria, and the decorator that registers them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from slimvit.config import choices
from slimvit.data.loaders import Batches
from slimvit.models.base import TimmModule
from slimvit.models.parts.base import Part

ScoresByPart: TypeAlias = Mapping[str, Sequence[Any]]
"""Scores by part, block by block: `PartScores`, or one number per unit (a tensor, an array or a list)."""
ScoreFunction = Callable[..., Any]
AnyFunction = TypeVar("AnyFunction", bound=ScoreFunction)


@dataclass(frozen=True)
class Criterion:
    """A named function that scores units: `model, batches -> scores by part`.

    The function may have the further parameters `seed` (an int) and `parts` (names of the parts to score).
    """

    name: str
    function: ScoreFunction
    needs_classifier: bool = False
    """Whether the function needs labels and a classifier."""
    needs_images: bool = True
    """Whether the function reads the images, not weights alone."""

    def __call__(self, model: TimmModule, batches: Batches, seed: int, parts: tuple[str, ...]) -> ScoresByPart:
        parameters = inspect.signature(self.function).parameters
        optional = {"seed": seed, "parts": parts}
        return self.function(model, batches, **{name: v for name, v in optional.items() if name in parameters})


CRITERIA: dict[str, Criterion] = {}
PART_SCORES: dict[str, ScoreFunction] = {}
"""Functions that score the parts whose units are not inputs of a last layer, by part."""


def scores_part(part: Part) -> Callable[[AnyFunction], AnyFunction]:
    """Register a function that scores a part under every criterion: `model, batches, seed -> scores, block by block`.

    The batches are empty under a criterion that reads weights alone.
    """

    def register(function: AnyFunction) -> AnyFunction:
        PART_SCORES[part.name] = function
        return function

    return register


def criterion(
    name: str, *, needs_classifier: bool = False, needs_images: bool = True
) -> Callable[[AnyFunction], AnyFunction]:
    """Register a function as a criterion for recipes and `--criterion`.

    Args:
        name: Name of the criterion.
        needs_classifier: Whether it needs labels and a classifier.
        needs_images: Whether it reads the images, not weights alone.
    """

    def register(function: AnyFunction) -> AnyFunction:
        CRITERIA[name] = Criterion(name, function, needs_classifier, needs_images)
        choices.CRITERIA.add(name)
        return function

    return register
