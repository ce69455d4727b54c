"""What a search is asked to do. Knows no torch, no Ray: it is checked before anything starts."""

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
    """For each task, the default recipe's among them."""
    algorithm: str = "random"
    """A key of `pipeline.search.sampler.ALGORITHMS`."""
    epochs: int | None = None
    """Of a whole trial; None: the recipe's."""
    halving: bool = True
    """Stop trials that are behind (`pipeline.search.halving`)."""
    seconds: float | None = None
    """For each task: once its trials took so many device-seconds, no other begins."""
    space: str | None = None
    """TOML file of the search space."""
    common_registers: bool = False
    """One number of registers for all tasks."""
    at_once: int | None = None
    """Most trials of a task at once; None: as many as its share of the cluster holds."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """The search of one task."""

    options: SearchOptions
    space: Space

    def recipe(self, recipe: Recipe) -> Recipe:
        """Of trial 0: the task's, with a trial's epochs."""
        return dataclasses.replace(recipe, epochs=self.options.epochs or recipe.epochs)

    def rungs(self, recipe: Recipe, num_samples: int) -> tuple[int, ...]:
        """After which epochs trials are compared that train on so many images; none without halving."""
        trial = self.recipe(recipe)
        if not self.options.halving:
            return ()
        steps = num_samples // min(trial.batch_size, num_samples)
        return rungs(trial.epochs, trial.epochs_between_validations, trial.warmup_epochs, steps)

    def inputs(self) -> dict[str, Any]:
        """All that the trials' points depend on beside the task's seed, in JSON values."""
        return {
            "algorithm": self.options.algorithm,
            "space": {name: part.to_dict() for name, part in self.space.items()},
            "common_registers": self.options.common_registers,
        }

    def registers(self) -> tuple[int, ...] | None:
        """The numbers of registers that all tasks try in common."""
        if not self.options.common_registers:
            return None
        part = self.space["num_registers"]
        assert isinstance(part, Choice)  # as the command line was checked
        return tuple(part.values)
