"""What a search is asked to do. This module imports neither torch nor Ray: it is checked before anything starts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pipeline.search.halving import rungs
from pipeline.search.space import Choice, Space
from pipeline.tasks.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The part of a command line that is about searching."""

    trials: int
    """Number of trials of each task; the first one has the default recipe."""
    algorithm: str = "random"
    """A key of `pipeline.search.sampler.ALGORITHMS`."""
    epochs: int | None = None
    """Epochs of a whole trial; None takes the recipe's."""
    halving: bool = True
    """Stop trials that are behind (`pipeline.search.halving`)."""
    seconds: float | None = None
    """No other trial of a task begins once its trials took this many device-seconds."""
    space: str | None = None
    """TOML file of the search space."""
    common_registers: bool = False
    """Search one number of registers for all tasks."""
    at_once: int | None = None
    """Most trials of a task at once; None takes as many as its share of the cluster holds."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """The search of one task."""

    options: SearchOptions
    space: Space

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe of trial 0: the task's, with a trial's epochs."""
        return dataclasses.replace(recipe, epochs=self.options.epochs or recipe.epochs)

    def rungs(self, recipe: Recipe, num_samples: int) -> tuple[int, ...]:
        """The epochs after which trials are compared; none without halving.

        Args:
            recipe: the task's.
            num_samples: images that a trial trains on.
        """
        trial = self.recipe(recipe)
        if not self.options.halving:
            return ()
        steps = num_samples // min(trial.batch_size, num_samples)
        return rungs(trial.epochs, trial.epochs_between_validations, trial.warmup_epochs, steps)

    def inputs(self) -> dict[str, Any]:
        """Everything but the task's seed that the trials' points depend on, in JSON values."""
        return {
            "algorithm": self.options.algorithm,
            "space": {name: part.to_dict() for name, part in self.space.items()},
            "common_registers": self.options.common_registers,
        }

    def registers(self) -> tuple[int, ...] | None:
        """The numbers of registers that all tasks try; None if each task searches for itself."""
        if not self.options.common_registers:
            return None
        part = self.space["num_registers"]
        assert isinstance(part, Choice)  # the command line was checked
        return tuple(part.values)
