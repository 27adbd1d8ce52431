"""The words a user may choose from. No imports beyond typing: the command line's help must answer at once.

What can be extended has an open set of words (`Words`): whoever registers a criterion, a part, a budget or an
export format adds its word. The rest is closed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from slimvit.utils.errors import nearest
from slimvit.utils.plugins import load_plugins

if TYPE_CHECKING:
    from pydantic_core.core_schema import CoreSchema


class Words:
    """An open set of words for one thing, in the order in which help and messages list them.

    As the metadata of an annotated `str` it makes pydantic refuse what is not in the set.
    """

    def __init__(self, *known: str) -> None:
        self._known = dict.fromkeys(known)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __contains__(self, word: object) -> bool:
        return word in self._known

    def add(self, word: str) -> None:
        """Make a word known; one that is known already stays where it is."""
        self._known[word] = None

    def check(self, word: str) -> str:
        """The word itself.

        Raises:
            ValueError: It is unknown, also after the installed plugins were loaded; the message lists the known words
                and the nearest one.
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
PARTS = Words("heads", "mlp", "branches")
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

SCOPES: tuple[str, ...] = get_args(Scope)
REFIT_TARGETS: tuple[str, ...] = get_args(RefitTarget)
ADAPT_MODES: tuple[str, ...] = get_args(AdaptMode)
DENSE_MIXES: tuple[str, ...] = get_args(DenseMix)
DENSE_INITS: tuple[str, ...] = get_args(DenseInit)
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp32", "bf16")
TRACKERS = ("tensorboard", "wandb")
