"""What a kind of budget is, and how a file registers one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from slimvit.config import choices
from slimvit.config.recipe import PruneSection
from slimvit.models.plan import SlimPlan
from slimvit.prune.costs.base import Costs
from slimvit.utils.distributed import Engine
from slimvit.utils.errors import PlanError


@dataclass(frozen=True)
class Checked:
    """What a look at the finished model found."""

    note: str
    """Said to the user and noted in the report."""
    figures: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Column of the report -> its figure for the original and for the finished model."""


class Budget(ABC):
    """A kind of budget: what is counted, and what the parts of a model cost in it.

    One file defines a subclass and registers one instance of it; recipes (`target: {NAME: FRACTION}`), the command
    line (`--target NAME=FRACTION`), planner, dry run and the check after the run follow.
    """

    name: str
    """The word in recipes."""
    unit: str
    """Of its figures."""
    noun: str
    """What is counted, in words, after "of the"."""
    figure: str | None = None
    """Key of the dry run's figures before and after; None where the dry run has them anyway."""
    promise: str = "estimated"
    """What the figures of a dry run are, in words."""

    @property
    def option(self) -> str:
        """What messages call a target of this kind."""
        return f"target-{self.name}"

    def prepare(self, original: nn.Module, section: PruneSection, engine: Engine | None, before: Any) -> Any:
        """Whatever prices need to have measured, the same in every process.

        Args:
            original: The model before any cut, on the device that counts.
            section: The recipe's.
            engine: Of the processes that run this, if they are several.
            before: What an earlier call gave in this run, perhaps for another model, or None.
        """
        return None

    @abstractmethod
    def costs(self, model: nn.Module, original: nn.Module, prepared: Any) -> Costs:
        """What the parts of `model` cost, which was cut out of `original` or is it."""

    @abstractmethod
    def true_cost(self, finished: Callable[[], nn.Module], promised: float) -> float:
        """What the model costs when a plan is carried out; `finished` makes it, its prices add up to `promised`."""

    def check(
        self, original: nn.Module, final: nn.Module, target: Target, section: PruneSection, engine: Engine
    ) -> Checked | None:
        """Look at the model that a run ends with; None where nothing could differ from what was planned."""
        return None

    def forecast(self, costs: Costs, before: SlimPlan, after: SlimPlan) -> dict[str, list[float]]:
        """The figure of a dry run, before and after."""
        return {} if self.figure is None else {self.figure: [costs.total(before), costs.total(after)]}


@dataclass(frozen=True)
class Target:
    """A budget, the fraction of the original that may be left, and what its prices needed to have measured."""

    budget: Budget
    fraction: float
    prepared: Any = None

    @property
    def name(self) -> str:
        """The option and its value, as messages begin."""
        return f"{self.budget.option} {self.fraction:g}"

    def costs(self, model: nn.Module, original: nn.Module) -> Costs:
        """What the parts of `model` cost."""
        return self.budget.costs(model, original, self.prepared)


BUDGETS: dict[str, Budget] = {}


def register_budget(budget: Budget) -> Budget:
    """Add a kind of budget, so that recipes and the command line know it."""
    BUDGETS[budget.name] = budget
    choices.BUDGET_KINDS.add(budget.name)
    return budget


def budget_of(name: str) -> Budget:
    """The kind of budget of a name; raises `PlanError` for one that is not known."""
    try:
        return BUDGETS[choices.BUDGET_KINDS.check(name)]
    except ValueError as error:
        raise PlanError(f"budget {name!r} is not known; choose {error}") from None
