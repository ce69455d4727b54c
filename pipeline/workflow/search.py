"""The step `search` of one task: trials on train and val, each kept when it ends, and the choice among them.

Test is not at hand here: what is given are the manifests of train and val alone.
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
from pipeline.workflow.job import Site, TaskJob, spec_of, without_places
from pipeline.workflow.lease import Lease
from pipeline.workflow.search_tracking import TrialRuns
from pipeline.workflow.steps import Steps, fingerprint


class TaskSearch:
    """The search of one task on its shards.

    Args:
        job: with a search.
        site: of the fan-out.
        manifests: of train and val.
    """

    def __init__(self, job: TaskJob, site: Site, manifests: dict[str, Manifest]) -> None:
        assert job.search is not None
        self.job, self.site, self.plan = job, site, job.search
        self._manifests = {split: manifests[split] for split in ("train", "val")}
        self._recipe = self.plan.recipe(job.recipe)
        self.measure = job.task.measure
        self.rungs = self.plan.rungs(job.recipe, manifests["train"].num_samples)
        only = {
            name: p.values[0] for name, p in self.plan.space.items() if isinstance(p, Choice) and len(p.values) == 1
        }
        self._default = {**point_of(self._recipe, job.hsn, self.plan.space), **only}
        self._trial_inputs = {
            "run": without_places(self._spec(Trial(number=0, point=self._default))),
            "device": site.device,
            "gpus": site.room.gpus,  # what a trial of some size has room for
            "rungs": list(self.rungs),
            "measure": self.measure.to_dict(),  # where trials stop, and which point comes next
            **self.plan.inputs(),
        }
        self._inputs = {
            **self._trial_inputs,
            "trials": self.plan.options.trials,
            "seconds": self.plan.options.seconds,
        }
        self.fingerprint = fingerprint("search", self._inputs)

    def run(self, key: str) -> list[Outcome]:
        """The outcomes of all trials.

        Args:
            key: the tracker's, of the task's run.

        Raises:
            TrainingError: trials failed in a way in which all would, or none has a result.
            Stopped: the fan-out was told to stop.
        """
        steps = self.site.steps(self.job.task.name)
        runs = TrialRuns(self.job, self.site, key, self.plan.space, self._recipe)
        try:
            record, reused = steps.run("search", self._inputs, lambda _, lease: self._work(steps, lease, runs))
        except BaseException:
            runs.break_off()
            raise
        outcomes = [Outcome(**fields) for fields in record["outcomes"]]
        if reused:
            self.site.say(f"{self.job.task.name}: searched before, not again")
        if winner(outcomes, self.measure) is None:
            reasons = {r["failed"] for r in record["trials"] if r["failed"]}
            raise TrainingError(
                f"{self.job.task.name}: no trial of the search has a result: {'; '.join(sorted(reasons))}"
            )
        self._record, self._runs = record, runs
        return outcomes

    def choose(self, outcomes: Sequence[Outcome], registers: int | None = None) -> tuple[int, TaskJob]:
        """The winner's number, and the job with its recipe (for all epochs) and side network; MLflow is told.

        Args:
            outcomes: of `run`.
            registers: if given, among the trials with so many registers.
        """
        number = winner(outcomes, self.measure, registers)
        if number is None:
            raise TrainingError(f"{self.job.task.name}: no trial with {registers} registers did its last epoch")
        records = [Record(**fields) for fields in self._record["trials"]]
        self._runs.log_search(records, outcomes, number, self.rungs, self._record["importance"])
        return number, self._job(self.job.recipe, outcomes[number].point)

    def _job(self, recipe: Recipe, point: Point) -> TaskJob:
        """Raises ValueError for a point with which no step could be made, in the search or in the training after it."""
        recipe, hsn = apply(recipe, self.job.hsn, point)
        most_workers = worker_bounds(self.site.plan.asked_workers)[1]
        if (fault := step_fault(recipe, self._manifests["train"].num_samples, most_workers)) is not None:
            raise ValueError(fault)
        return dataclasses.replace(self.job, recipe=recipe, hsn=hsn.resolve(self.site.backbone_depth), search=None)

    def _spec(self, trial: Trial) -> RunSpec:
        return spec_of("selection", self._job(self._recipe, trial.point), self.site, self._manifests)

    def _work(self, steps: Steps, lease: Lease, runs: TrialRuns) -> dict[str, Any]:
        task, options = self.job.task.name, self.plan.options
        registers = self.plan.registers()
        sampler = Sampler(
            self.plan.space,
            algorithm=options.algorithm,
            seed=self.job.seed,
            task=task,
            measure=self.measure,
            registers=registers and register_order(self.job.seed, registers, options.trials),
        )

        def inputs(trial: Trial) -> dict[str, Any]:
            """Its number, too: where it was stopped depends on those before it."""
            return {**self._trial_inputs, "number": trial.number, "point": trial.point}

        def folder_of(trial: Trial) -> str:
            key = fingerprint("trial", inputs(trial))
            return join(self.site.storage, "train", f"{task}-trial-{key[:16]}")

        def discard(trial: Trial) -> None:
            try:
                checkpoints.discard(folder_of(trial))
            except (StorageError, OSError) as error:
                self.site.say(f"{task}: the checkpoints of trial {trial.number} could not be removed ({error})")

        def find(trial: Trial) -> Record | None:
            found = steps.find("trial", fingerprint("trial", inputs(trial)))
            if found is None:
                return None
            discard(trial)
            return Record(**found)

        def keep(record: Record) -> None:
            trial = Trial(number=record.number, point=record.point)
            steps.commit("trial", inputs(trial), dataclasses.asdict(record), lease)
            discard(trial)
            done = len(trials.records)
            self.site.state.set(task, "search", done=done, trials=options.trials)
            self.site.say(f"{task}: {self._line(record, done)}")
            runs.log_trial(record)

        trials = Trials(
            default=self._default,
            sampler=sampler,
            count=options.trials,
            epochs=self._recipe.epochs,
            measure=self.measure,
            rungs=self.rungs,
            budget_seconds=options.seconds,
            find=find,
            keep=keep,
        )
        self.site.state.set(task, "search", done=0, trials=options.trials)
        searched = [name for name, part in self.plan.space.items() if is_searched(part)]
        values = as_settings({name: self._default[name] for name in self.plan.space if name not in searched})
        fixed = f" (with {' '.join(values)})" if values else ""
        self.site.say(
            f"{task}: searching {', '.join(searched)}{fixed}: {options.trials} trials of at most "
            f"{self._recipe.epochs} epochs, {self.site.room.at_once} at once"
        )
        run_trials(
            trials,
            self._spec,
            folder_of=folder_of,
            attempt=lease.attempt,
            backbone=self.site.backbone,
            room=self.site.room,
            on_rows=runs.log_rows,
            say=lambda line: self.site.say(f"{task}: {line}"),
            stopped=lambda: self.site.stop.is_set() or lease.lost.is_set(),
            cache_shards=self.site.cache_shards,
        )
        if trials.found:
            self.site.say(f"{task}: {trials.found} of {len(trials.records)} trials were there and were not repeated")
        outcomes = trials.outcomes()
        return {
            "trials": [dataclasses.asdict(trials.records[number]) for number in range(len(outcomes))],
            "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
            "importance": importance(self.plan.space, outcomes),
        }

    def _line(self, record: Record, done: int) -> str:
        """A trial that has ended, for people."""
        values = list(values_of(record.rows, self.measure).values())
        result = f"val {self.measure.text(values[-1])}" if values else "no result"
        if record.failed:
            result = f"failed: {record.failed}"
        point = " ".join(f"{name}={label(value)}" for name, value in record.point.items())
        what = "the default" if record.number == 0 else point
        epochs = f"{len(record.rows)} of {self._recipe.epochs} epochs"
        ended = "after" if record.failed or len(record.rows) == self._recipe.epochs else "stopped after"
        return f"trial {record.number} ({done} of {self.plan.options.trials}): {result}, {ended} {epochs}: {what}"
