"""The step `search` of one task: trials on train and val, each kept when it ends, and the choice among them.

Test cannot be read here: a search is given the manifests of train and val alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pipeline.cluster.resources import worker_bounds
from pipeline.data.shards.manifest import Manifest
from pipeline.search.sampler import Outcome, Sampler, importance, register_order
from pipeline.search.space import Choice, Point, apply, as_settings, is_searched, label, point_of
from pipeline.search.trials import Record, Trial, Trials, values_of, winner
from pipeline.search.tuning import run_trials
from pipeline.storage.files import StorageError, join
from pipeline.tasks.recipe import Recipe, step_fault
from pipeline.training import checkpoints
from pipeline.training.task_run import TrainingError
from pipeline.training.unit import RunSpec
from pipeline.workflow.job import RUN_SPLITS, TaskJob, TaskWork, spec_of, steps_of, without_places
from pipeline.workflow.lease import Lease
from pipeline.workflow.search_tracking import TrialRuns
from pipeline.workflow.site import Site


class TaskSearch:
    """The search of one task on its shards.

    Args:
        job: a job with a search.
        site: the fan-out's site.
        manifests: the manifests, with train and val among them.
    """

    def __init__(self, job: TaskJob, site: Site, manifests: dict[str, Manifest]) -> None:
        assert job.search is not None
        self.job, self.site, self.plan = job, site, job.search
        self._manifests = {split: manifests[split] for split in RUN_SPLITS["selection"]}
        self.steps = steps_of(job, site)
        self.recipe = self.plan.recipe(job.recipe)
        self.measure = job.task.measure
        self.rungs = self.plan.rungs(job.recipe, manifests["train"].num_samples)
        only = {
            name: p.values[0] for name, p in self.plan.space.items() if isinstance(p, Choice) and len(p.values) == 1
        }
        self.default = {**point_of(self.recipe, job.hsn, self.plan.space), **only}
        self._trial_inputs = {
            "run": without_places(self.spec(Trial(number=0, point=self.default))),
            "device": site.cluster.device,
            "gpus": site.cluster.room.gpus,  # whether a large trial fits
            "rungs": list(self.rungs),
            "measure": self.measure.to_dict(),  # where trials stop, and which point comes next
            **self.plan.inputs(),
        }
        self._inputs = {
            **self._trial_inputs,
            "trials": self.plan.options.trials,
            "seconds": self.plan.options.seconds,
        }
        self.fingerprint = self.steps.fingerprint("search", self._inputs)

    def run(self, key: str) -> list[Outcome]:
        """Run all trials; returns their outcomes.

        Args:
            key: the tracker's key of the task's run.

        Raises:
            TrainingError: trials failed in a way in which all would, or none has a result.
            Stopped: the fan-out was asked to stop.
        """
        work = TaskWork(job=self.job, site=self.site, key=key, manifests=self._manifests)
        runs = TrialRuns(work, self.plan.space, self.recipe)
        try:
            record, reused = self.steps.run(
                "search", self._inputs, lambda _, lease: _Attempt(self, work, lease, runs).run()
            )
        except BaseException:
            runs.break_off()
            raise
        outcomes = [Outcome(**fields) for fields in record["outcomes"]]
        if reused:
            work.say("searched before, not again")
        if winner(outcomes, self.measure) is None:
            reasons = {r["failed"] for r in record["trials"] if r["failed"]}
            raise TrainingError(f"{work.name}: no trial of the search has a result: {'; '.join(sorted(reasons))}")
        self._record, self._runs = record, runs
        return outcomes

    def choose(self, outcomes: Sequence[Outcome], registers: int | None = None) -> tuple[int, TaskJob]:
        """Choose the best trial and log the choice; returns its number, and the job with its recipe and side network.

        Args:
            outcomes: the outcomes that `run` returned.
            registers: if given, only trials with this number of registers count.
        """
        number = winner(outcomes, self.measure, registers)
        if number is None:
            raise TrainingError(f"{self.job.task.name}: no trial with {registers} registers did its last epoch")
        records = [Record(**fields) for fields in self._record["trials"]]
        self._runs.log_search(records, outcomes, number, self.rungs, self._record["importance"])
        return number, self._job(self.job.recipe, outcomes[number].point)

    def _job(self, recipe: Recipe, point: Point) -> TaskJob:
        """The job with the recipe and the side network at a point.

        Raises:
            ValueError: no step could be made there, in the search or in the training after it.
        """
        recipe, hsn = apply(recipe, self.job.hsn, point)
        most_workers = worker_bounds(self.site.cluster.plan.asked_workers)[1]
        if (fault := step_fault(recipe, self._manifests["train"].num_samples, most_workers)) is not None:
            raise ValueError(fault)
        return dataclasses.replace(self.job, recipe=recipe, hsn=hsn.resolve(self.site.backbone.depth), search=None)

    def inputs(self, trial: Trial) -> dict[str, Any]:
        """What a trial's record depends on. The number is part of it: earlier trials decide where this one stops."""
        return {**self._trial_inputs, "number": trial.number, "point": trial.point}

    def spec(self, trial: Trial) -> RunSpec:
        """A trial's run. Raises ValueError for a point with which no step could be made."""
        return spec_of("selection", self._job(self.recipe, trial.point), self.site, self._manifests)


class _Attempt:
    """One driver's attempt at a search, for as long as it holds the lease."""

    def __init__(self, search: TaskSearch, work: TaskWork, lease: Lease, runs: TrialRuns) -> None:
        self._search, self._work, self._lease, self._runs = search, work, lease, runs
        self._options = search.plan.options
        self._trials = Trials(
            default=search.default,
            sampler=self._sampler(),
            count=self._options.trials,
            epochs=search.recipe.epochs,
            measure=search.measure,
            rungs=search.rungs,
            budget_seconds=self._options.seconds,
            find=self._find,
            keep=self._keep,
        )

    def run(self) -> dict[str, Any]:
        """Runs the trials to their ends; returns the step's result."""
        trials, work, site = self._trials, self._work, self._work.site
        self._announce()
        run_trials(
            trials,
            self._search.spec,
            folder_of=self._folder_of,
            attempt=self._lease.attempt,
            backbone=site.backbone.weights,
            room=site.cluster.room,
            on_rows=self._runs.log_rows,
            say=work.say,
            stopped=lambda: site.stop.is_set() or self._lease.lost.is_set(),
            cache_shards=site.cluster.cache_shards,
        )
        if trials.found:
            work.say(f"{trials.found} of {len(trials.records)} trials were there and were not repeated")
        outcomes = trials.outcomes()
        return {
            "trials": [dataclasses.asdict(trials.records[number]) for number in range(len(outcomes))],
            "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
            "importance": importance(self._search.plan.space, outcomes),
        }

    def _sampler(self) -> Sampler:
        search, registers = self._search, self._search.plan.registers()
        return Sampler(
            search.plan.space,
            algorithm=self._options.algorithm,
            seed=search.job.seed,
            task=self._work.name,
            measure=search.measure,
            registers=registers and register_order(search.job.seed, registers, self._options.trials),
        )

    def _announce(self) -> None:
        """Says what is searched, and notes the stage."""
        search, space = self._search, self._search.plan.space
        self._work.set_stage("search", done=0, trials=self._options.trials)
        searched = [name for name, part in space.items() if is_searched(part)]
        values = as_settings({name: search.default[name] for name in space if name not in searched})
        fixed = f" (with {' '.join(values)})" if values else ""
        self._work.say(
            f"searching {', '.join(searched)}{fixed}: {self._options.trials} trials of at most "
            f"{search.recipe.epochs} epochs, {self._work.site.cluster.room.at_once} at once"
        )

    def _folder_of(self, trial: Trial) -> str:
        """The place of a trial's checkpoints."""
        key = self._search.steps.fingerprint("trial", self._search.inputs(trial))
        return join(self._work.site.places.storage, "train", f"{self._work.name}-trial-{key[:16]}")

    def _discard(self, trial: Trial) -> None:
        """Removes the checkpoints of a trial that has ended."""
        try:
            checkpoints.discard(self._folder_of(trial))
        except (StorageError, OSError) as error:
            self._work.say(f"the checkpoints of trial {trial.number} could not be removed ({error})")

    def _find(self, trial: Trial) -> Record | None:
        """The record of a trial that an earlier attempt has ended."""
        steps = self._search.steps
        found = steps.find("trial", steps.fingerprint("trial", self._search.inputs(trial)))
        if found is None:
            return None
        self._discard(trial)
        return Record(**found)

    def _keep(self, record: Record) -> None:
        """Keeps the record of a trial that has just ended, and says so."""
        trial = Trial(number=record.number, point=record.point)
        self._search.steps.commit("trial", self._search.inputs(trial), dataclasses.asdict(record), self._lease)
        self._discard(trial)
        done = len(self._trials.records)
        self._work.set_stage("search", done=done, trials=self._options.trials)
        self._work.say(self._line(record, done))
        self._runs.log_trial(record)

    def _line(self, record: Record, done: int) -> str:
        """A trial that has ended, for people."""
        measure, epochs = self._search.measure, self._search.recipe.epochs
        values = list(values_of(record.rows, measure).values())
        result = f"val {measure.text(values[-1])}" if values else "no result"
        if record.failed:
            result = f"failed: {record.failed}"
        point = " ".join(f"{name}={label(value)}" for name, value in record.point.items())
        what = "the default" if record.number == 0 else point
        ended = "after" if record.failed or len(record.rows) == epochs else "stopped after"
        return (
            f"trial {record.number} ({done} of {self._options.trials}): {result}, "
            f"{ended} {len(record.rows)} of {epochs} epochs: {what}"
        )
