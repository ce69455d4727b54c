"""Runs the trials of one search with Ray Tune, as many at once as there is room for.

A trial is a plain function. An actor runs one trial after another, and keeps the frozen weights and the decoded images.
`pipeline.search.trials` decides which trial comes next and which is stopped, through Tune's searcher and scheduler.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.error import TuneError

from hst.backbone import Backbone
from pipeline.cluster.resources import Room
from pipeline.console.progress import counted
from pipeline.search.trial import run_trial
from pipeline.search.trials import Row, Trial, Trials
from pipeline.search.tune_hooks import Course, Processes, Scheduler, Searcher
from pipeline.storage.errors import DiskFullError, StorageError, is_full
from pipeline.tasks.recipe import Recipe
from pipeline.training.on_ray.driver import GRACE_S
from pipeline.training.on_ray.mailbox import Mailbox, WorkersEnd
from pipeline.training.precision import model_dtype
from pipeline.training.stopped import Stopped
from pipeline.training.task_run import NotFiniteError, TrainingError
from pipeline.training.unit import RunSpec
from pipeline.training.workers import Workers

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_UNTIL_TOLD = 40.0
"""Time after which a line says that no trial has begun. On a busy machine a process takes half of it to start."""


def run_trials(
    trials: Trials,
    spec_of: Callable[[Trial], RunSpec],
    *,
    folder_of: Callable[[Trial], str],
    attempt: int,
    backbone: ray.ObjectRef,
    room: Room,
    on_rows: Callable[[Trial, Sequence[Row]], None],
    say: Callable[[str], None] = print,
    stopped: Callable[[], bool] = lambda: False,
    cache_shards: bool = False,
) -> None:
    """Run every trial to its end.

    Args:
        trials: the search's trials; all rows go to them.
        spec_of: a trial's selection run.
        folder_of: URI of a trial alone, for its checkpoints.
        attempt: the lease's attempt.
        backbone: returned by `pipeline.training.on_ray.driver.put_backbone`.
        room: what the trials have.
        on_rows: is called with a trial's new rows.
        say: prints a line.
        stopped: once it returns true, the trials save their state and end, within GRACE_S.
        cache_shards: see `build_run`.

    Raises:
        TrainingError: a trial failed in a way in which others would, too; trials that have ended are kept.
        Stopped: ``stopped`` returned true.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # else it prints tracebacks of trials that it runs again
    # Tune writes no files and no lines of its own.
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    mailbox = Mailbox()
    course = Course(trials, spec_of, folder_of, on_rows, say, stopped)
    shared = {
        "backbone": backbone,
        "mailbox": mailbox.handle,
        "attempt": attempt,
        "threads": room.cpus,
        "gpus": room.gpus,
        "cache_shards": cache_shards,
    }

    def trainable(config: dict[str, Any], shared: dict[str, Any]) -> None:
        _run(config, shared)

    # Tune registers functions and their parameters by name: two searches at once must not share a name.
    trainable.__name__ = f"trial_{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory(prefix="hst-tune-", ignore_cleanup_errors=True) as scratch, course.turn:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(trainable, shared=shared),
                {"CPU": room.cpus, **({"GPU": room.gpus} if room.gpus else {})},
            ),
            tune_config=tune.TuneConfig(
                search_alg=Searcher(course, room.at_once),
                scheduler=Scheduler(course),
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=-1),  # Processes counts them
                callbacks=[Processes(course)],
            ),
        )
        try:
            _fit(tuner, mailbox, stopped, _Wait(course, room, say))
        except TuneError:  # Tune wraps the errors of its hooks
            raise course.error or TrainingError("Tune could not run the trials") from None
        finally:
            course.given_up = True
            mailbox.close()
    if stopped():
        raise Stopped("the search was told to stop; the state of its trials is saved")


class _Wait:
    """Says once that no trial has begun for a while, and when one has."""

    def __init__(self, course: Course, room: Room, say: Callable[[str], None]) -> None:
        self._course, self._say = course, say
        self._needed = counted(room.cpus, "free CPU") + (f" and {room.gpus:g} GPU" if room.gpus else "")
        self._since, self._told = time.monotonic(), False

    def look(self) -> None:
        now = time.monotonic()
        if not self._course.is_waiting:
            if self._told:
                self._say("a trial has begun")
            self._since, self._told = now, False
        elif not self._told and now - self._since >= SECONDS_UNTIL_TOLD:
            self._told = True
            self._say(f"no trial has begun for {now - self._since:.0f} s; each needs {self._needed} on a node")


def _fit(tuner: tune.Tuner, mailbox: Mailbox, stopped: Callable[[], bool], wait: _Wait) -> None:
    """Calls ``tuner.fit`` in a thread, which is abandoned if it does not end in time; raises that call's error."""
    outcome: list[Exception] = []

    def target() -> None:
        try:
            tuner.fit()
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=target, name="tune", daemon=True)
    thread.start()
    deadline: float | None = None
    while thread.is_alive():
        thread.join(SECONDS_BETWEEN_LOOKS)
        if not stopped():
            wait.look()
            continue
        if deadline is None:
            deadline = time.monotonic() + GRACE_S
            mailbox.ask_to_stop()
        elif time.monotonic() > deadline:
            break
    if outcome:
        raise outcome[0]


_backbones: dict[str, Backbone] = {}


def _run(config: dict[str, Any], shared: dict[str, Any]) -> None:
    """Run a trial, in an actor that may have run others before."""
    number = config["number"]
    spec = RunSpec(**config["spec"])
    torch.set_num_threads(shared["threads"])
    device = torch.device("cuda" if shared["gpus"] else "cpu")
    mailbox = WorkersEnd(shared["mailbox"])

    def say(**what: Any) -> None:
        tune.report({"number": number, "said": [what]})  # in a list, which Tune does not take apart

    def tell(rows: list[Row], facts: dict[str, Any]) -> None:
        say(rows=rows, facts=facts)

    try:
        run_trial(
            spec,
            _backbone(spec, shared["backbone"], device),
            Workers(device=device, device_share=shared["gpus"] or 1.0),
            folder=config["folder"],
            attempt=f"{shared['attempt']:04d}-{config['tune_id']}-{os.getpid()}",
            tell=tell,
            is_stopping=mailbox.is_stopping,
            cache_shards=shared["cache_shards"],
        )
    except Stopped:
        say(stopped=True)
    except (NotFiniteError, torch.OutOfMemoryError) as error:  # another point may work in the same room
        say(failed=str(error))
    except (StorageError, OSError) as error:
        if not is_full(error):
            raise  # it may answer next time
        say(fault=str(DiskFullError.of(error.filename or config["folder"], error)))
    except (TrainingError, ValueError) as error:
        say(fault=str(error))


def _backbone(spec: RunSpec, weights: ray.ObjectRef, device: torch.device) -> Backbone:
    """The process's own backbone, made once."""
    precision = model_dtype(Recipe.from_dict(spec.recipe))
    if spec.backbone_identity not in _backbones:
        _backbones.clear()
        _backbones[spec.backbone_identity] = Backbone.from_arrays(
            spec.backbone_name, ray.get(weights), spec.backbone_identity
        ).to(device, precision)
    return _backbones[spec.backbone_identity]
