"""The words that options and recipe keys take. Imports nothing heavy, so that help is fast.

`Words` are open sets: the registration of a criterion, part, budget or export format adds its word. Literals are
closed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from slimvit.utils.errors import nearest
from slimvit.utils.plugins import load_plugins

if TYPE_CHECKING:
    from pydantic_core.core_schema import CoreSchema


class Words:
    """An open set of words for one option, in the order of help and messages.

    As the metadata of an annotated `str` it makes pydantic refuse other words.
    """

    def __init__(self, *words: str) -> None:
        self._words = dict.fromkeys(words)

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def __contains__(self, word: object) -> bool:
        return word in self._words

    def add(self, word: str) -> None:
        """Add a word at the end; a known word keeps its place."""
        self._words[word] = None

    def check(self, word: str) -> str:
        """Return a known word; plugins are loaded before a word counts as unknown.

        Raises:
            ValueError: The word is unknown. The message lists the known words and the nearest one.
        """
        if word not in self:
            load_plugins()
        if word not in self:
            *most, last = [repr(known) for known in self]
            raise ValueError(f"{', '.join(most)} or {last}{nearest(word, self, 1)}")
        return word

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._checked, core_schema.str_schema())

    def _checked(self, word: str) -> str:
        from pydantic_core import PydanticCustomError

        try:
            return self.check(word)
        except ValueError as error:
            raise PydanticCustomError("unknown_word", "Input should be {allowed}", {"allowed": str(error)}) from None


CRITERIA = Words("residual", "fisher", "taylor", "magnitude", "random", "tp-magnitude", "tp-taylor")
PARTS = Words("heads", "mlp", "qk", "tokens", "branches")
BUDGET_KINDS = Words("macs", "params", "latency")
EXPORT_FORMATS = Words("onnx", "torch-export", "timm")

Criterion = Annotated[str, CRITERIA]
PartWord = Annotated[str, PARTS]
BudgetKind = Annotated[str, BUDGET_KINDS]

Scope = Literal["uniform", "global"]
RefitTarget = Literal["own", "teacher", "stream", "none"]
AdaptMode = Literal["head", "all"]
DenseMix = Literal["layer", "head"]
DenseInit = Literal["zero", "normal"]
TrainedPart = Literal["all", "head"]
Sampler = Literal["shuffle", "balanced"]
DistillKind = Literal["soft", "hard", "features"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]

SCOPES: tuple[str, ...] = get_args(Scope)
REFIT_TARGETS: tuple[str, ...] = get_args(RefitTarget)
ADAPT_MODES: tuple[str, ...] = get_args(AdaptMode)
DENSE_MIXES: tuple[str, ...] = get_args(DenseMix)
DENSE_INITS: tuple[str, ...] = get_args(DenseInit)
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
CROP_MODES = ("center", "squash", "border")
CLASS_ORDERS = ("natural", "string")
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp32", "bf16")
TRACKERS = ("tensorboard", "wandb")
