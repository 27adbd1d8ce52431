"""The base class of budgets, and the registry of their kinds."""

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
    """The result of checking the finished model against its budget."""

    note: str
    """Result in one line, for the terminal and the report."""
    figures: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Figures of the original and the finished model, by column of the report."""


class Budget(ABC):
    """A kind of budget, such as MACs, with the prices of the parts of a model.

    One file defines a subclass and registers one instance. Recipes then accept `target: {NAME: FRACTION}`, and the
    command line `--target NAME=FRACTION`.
    """

    name: str
    """Name in recipes and on the command line."""
    unit: str
    """Unit of the costs."""
    noun: str
    """Name of the quantity, as in "0.5 of the MACs"."""
    figure: str | None = None
    """Key of the costs in a dry run's figures; None if the dry run has them anyway."""
    promise: str = "estimated"
    """Word after a dry run's figures: estimated, predicted for this device."""

    @property
    def option(self) -> str:
        """Name of the option in messages."""
        return f"target-{self.name}"

    def prepare(self, original: nn.Module, section: PruneSection, engine: Engine | None, before: Any) -> Any:
        """Make the measurements for the prices. All processes must get the same result.

        Args:
            original: The model before any cut, on the device to measure.
            section: The prune section of the recipe.
            engine: The engine of the run; None for a single process.
            before: The result of an earlier call in this run, possibly for another model, or None.

        Returns:
            The measurements for `costs`; None if it needs none.
        """
        return None

    @abstractmethod
    def costs(self, model: nn.Module, original: nn.Module, prepared: Any) -> Costs:
        """Return the costs of the parts of `model`.

        Args:
            model: The model to price.
            original: The uncut model; it may be `model` itself.
            prepared: The result of `prepare`.
        """

    @abstractmethod
    def true_cost(self, finished: Callable[[], nn.Module], estimate: float) -> float:
        """Return the true cost of a cut model.

        Args:
            finished: Function that cuts and returns the model.
            estimate: The sum of the prices.
        """

    def check(
        self, original: nn.Module, final: nn.Module, target: Target, section: PruneSection, engine: Engine
    ) -> Checked | None:
        """Compare the final model of a run with its target; None if `true_cost` is exact."""
        return None

    def forecast(self, costs: Costs, before: SlimPlan, after: SlimPlan) -> dict[str, list[float]]:
        """Return the costs of two plans for a dry run, under the key `figure`."""
        return {} if self.figure is None else {self.figure: [costs.total(before), costs.total(after)]}


@dataclass(frozen=True)
class Target:
    """A kind of budget, the fraction of the original's cost to reach, and the result of `prepare`."""

    budget: Budget
    fraction: float
    prepared: Any = None

    @property
    def name(self) -> str:
        """The option and its value, for messages."""
        return f"{self.budget.option} {self.fraction:g}"

    def costs(self, model: nn.Module, original: nn.Module) -> Costs:
        """Return the costs of the parts of `model`, which was cut from `original`."""
        return self.budget.costs(model, original, self.prepared)


BUDGETS: dict[str, Budget] = {}


def register_budget(budget: Budget) -> Budget:
    """Register a kind of budget for recipes and the command line."""
    BUDGETS[budget.name] = budget
    choices.BUDGET_KINDS.add(budget.name)
    return budget


def budget_of(name: str) -> Budget:
    """Return the budget of this name; raises `PlanError` for an unknown name."""
    try:
        return BUDGETS[choices.BUDGET_KINDS.check(name)]
    except ValueError as error:
        raise PlanError(f"budget {name!r} is not known; choose {error}") from None
