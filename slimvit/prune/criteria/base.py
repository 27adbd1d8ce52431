"""What a criterion is, and how a file registers one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from slimvit.config import choices
from slimvit.data.loaders import Batches
from slimvit.models.base import TimmModule

Found: TypeAlias = Mapping[str, Sequence[Any]]
"""By part, block by block: `PartScores`, or one number a unit (a tensor, an
array, a list)."""
ScoreFunction = Callable[..., Found]
AnyFunction = TypeVar("AnyFunction", bound=ScoreFunction)


@dataclass(frozen=True)
class Criterion:
    """A word and the function that scores units: `model, batches -> scores by part`.

    The function may also take `seed` (an int) and `parts` (the names of those that are asked for), by name.
    """

    name: str
    function: ScoreFunction
    needs_classifier: bool = False
    """Needs labels and a classifier."""
    needs_images: bool = True
    """Reads the images; otherwise it looks at weights alone."""

    def __call__(self, model: TimmModule, batches: Batches, seed: int, parts: tuple[str, ...]) -> Found:
        taken = inspect.signature(self.function).parameters
        more = {"seed": seed, "parts": parts}
        return self.function(model, batches, **{name: value for name, value in more.items() if name in taken})


CRITERIA: dict[str, Criterion] = {}


def criterion(
    name: str, *, needs_classifier: bool = False, needs_images: bool = True
) -> Callable[[AnyFunction], AnyFunction]:
    """Register a function as the criterion that recipes and `--criterion` call by `name`."""

    def register(function: AnyFunction) -> AnyFunction:
        CRITERIA[name] = Criterion(name, function, needs_classifier, needs_images)
        choices.CRITERIA.add(name)
        return function

    return register
