"""The step of a task's search, with trials that are played: what is kept, found again, repeated, chosen."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hst.backbone import Backbone
from hst.randomness import python_generator
from pipeline.cluster.resources import Plan, Room
from pipeline.data.shards.manifest import Manifest
from pipeline.search.plan import SearchOptions, SearchPlan
from pipeline.search.sampler import Outcome
from pipeline.search.space import Choice, Space
from pipeline.search.trials import Trial, Trials
from pipeline.training.stopped import Stopped
from pipeline.training.task_run import TrainingError
from pipeline.workflow import search as step
from pipeline.workflow.job import TaskJob
from pipeline.workflow.search import TaskSearch
from pipeline.workflow.site import Cluster, FrozenBackbone, Places, Reporting, Site
from pipeline.workflow.state import FanoutState
from tests.pipeline.training.conftest import TINY_HSN, TINY_RECIPE, TINY_TASK

# Few enough points that some come twice.
SPACE: Space = {"learning_rate": Choice((1e-3, 5e-3)), "num_registers": Choice((0, 1)), "drop_path": Choice((0.2,))}
RECIPE = dataclasses.replace(TINY_RECIPE, epochs=9)
Play = Callable[..., list[int]]


class Tracked:
    """A tracker that only remembers which runs are open, and tags."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.ended: set[str] = set()
        self.tags: dict[str, dict[str, Any]] = {}

    def open_run(self, key: str, **_: Any) -> None:
        self.open.add(key)

    def close_run(self, key: str, status: str = "") -> None:
        self.open.remove(key)
        if status != "KILLED":
            self.ended.add(key)

    def has_ended(self, key: str) -> bool:
        return key in self.ended

    def set_tags(self, key: str, tags: dict[str, Any]) -> None:
        self.tags.setdefault(key, {}).update(tags)

    def log_metrics(self, *_: Any) -> None: ...

    def log_artifact(self, *_: Any) -> None: ...


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Plays trials, ``at_once`` of them, and is killed after so many epochs; the numbers of those that were begun."""

    def install(at_once: int = 1, epochs: int = 10**6, fails: bool = False) -> list[int]:
        begun: list[int] = []

        def run_trials(trials: Trials, spec_of: Callable[[Trial], Any], **given: Any) -> None:
            draw, running, done = python_generator(at_once, "order"), dict[int, tuple[Trial, int]](), 0
            while True:
                while len(running) < at_once and isinstance(trial := trials.next(), Trial):
                    begun.append(trial.number)
                    running[trial.number] = (trial, 0)
                if not running:
                    return
                if done == epochs:
                    raise Stopped("killed")
                number = draw.choice(sorted(running))
                trial, epoch = running.pop(number)
                spec_of(trial)
                value = python_generator(0, str(trial.point), epoch).random()
                done += 1
                given["on_rows"](trial, [])
                if fails:
                    trials.on_failed(number, "no number")
                elif not trials.on_rows(number, [{"epoch": epoch + 1, "val/top1": value}], parameters=7):
                    running[number] = (trial, epoch + 1)

        monkeypatch.setattr(step, "run_trials", run_trials)
        return begun

    return install


@pytest.fixture
def search(tiny_manifests: dict[str, Manifest], tiny_backbone: Backbone) -> Callable[..., TaskSearch]:
    def make(root: Path, trials: int = 10, space: Space = SPACE, **options: Any) -> TaskSearch:
        plan = SearchPlan(options=SearchOptions(trials=trials, **options), space=space)
        job = TaskJob(task=TINY_TASK, recipe=RECIPE, hsn=TINY_HSN.resolve(8), seed=0, data="/data", search=plan)
        state = FanoutState(str(root), "key")
        tracker: Any = Tracked()
        site = Site(
            backbone=FrozenBackbone(
                name=tiny_backbone.name,
                identity=tiny_backbone.identity,
                depth=tiny_backbone.depth,
                is_random=False,
                weights=None,
            ),
            places=Places(storage=str(root), tracking_uri="", registry_prefix=""),
            cluster=Cluster(
                plan=Plan(num_workers=1, concurrent=1, cpus_per_worker=1, gpus_per_worker=0),
                room=Room(at_once=1, cpus=1, gpus=0),
                train=pytest.fail,
                cache_shards=False,
            ),
            reporting=Reporting(tracker=tracker, state=state, key="key", say=lambda line: None),
            stop=threading.Event(),
        )
        return TaskSearch(job, site, tiny_manifests)

    return make


def outcomes_of(search: TaskSearch) -> list[Outcome]:
    return search.run("key")


def test_a_search_that_is_killed_and_run_otherwise_ends_the_same_and_repeats_no_trial(
    search: Callable[..., TaskSearch], played: Play, tmp_path: Path
) -> None:
    played()
    expected = outcomes_of(search(tmp_path / "whole"))
    assert len({str(one.point) for one in expected}) < len(expected), "a point came twice"
    ended: set[int] = set()
    for at_once, epochs in ((3, 7), (2, 20), (1, 10**6)):
        begun = played(at_once, epochs)
        one = search(tmp_path / "killed")
        try:
            outcomes = outcomes_of(one)
        except Stopped:
            assert one.site.reporting.tracker.open == set(), "no trial's run stays open"  # type: ignore[attr-defined]
        assert not ended & set(begun), "a trial that had ended is not begun again"
        folder = tmp_path / "killed" / "workflows" / TINY_TASK.name
        ended = {int(number) for number in _numbers(folder)}
    assert outcomes == expected
    begun = played()
    assert outcomes_of(search(tmp_path / "killed")) == expected
    assert begun == []


def _numbers(folder: Path) -> list[int]:
    import json

    return [json.loads(path.read_text())["result"]["number"] for path in folder.glob("trial-*.json")]


def test_a_larger_search_adds_to_a_smaller_one(search: Callable[..., TaskSearch], played: Play, tmp_path: Path) -> None:
    played()
    small = outcomes_of(search(tmp_path, trials=4))
    begun = played()
    large = outcomes_of(search(tmp_path, trials=7))
    assert begun == [4, 5, 6]
    assert large[:4] == small


def test_another_space_or_length_shares_no_trial(
    search: Callable[..., TaskSearch], played: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.search.halving.GRACE_STEPS", 1)  # an epoch has two
    played()
    outcomes_of(search(tmp_path, trials=3))
    for changed in ({"space": {**SPACE, "num_registers": Choice((0, 1, 2))}}, {"epochs": 5}, {"halving": False}):
        begun = played()
        outcomes_of(search(tmp_path, trials=3, **changed))
        assert begun == [0, 1, 2], changed


def test_the_winner_has_all_epochs_and_what_a_file_fixes_binds_the_default_too(
    search: Callable[..., TaskSearch], played: Play, tmp_path: Path
) -> None:
    played()
    one = search(tmp_path, space={**SPACE, "drop_path": Choice((0.1,))}, epochs=5)
    outcomes = outcomes_of(one)
    assert {outcome.point["drop_path"] for outcome in outcomes} == {0.1}
    number, job = one.choose(outcomes)
    assert job.recipe.epochs == 9
    assert job.recipe.learning_rate == outcomes[number].point["learning_rate"]
    assert job.search is None
    assert one.site.reporting.tracker.tags["key"]["search_winner"] == number  # type: ignore[attr-defined]
    worse = next(r for r in (0, 1) if r != outcomes[number].point["num_registers"])
    if any(outcome.whole and outcome.point["num_registers"] == worse for outcome in outcomes):
        assert one.choose(outcomes, worse)[1].hsn.num_registers == worse


def test_a_point_with_which_no_step_can_be_made_has_failed_before_it_is_trained(
    search: Callable[..., TaskSearch], tmp_path: Path
) -> None:
    one = search(tmp_path, space={"accumulation_steps": Choice((1, 3))})
    with pytest.raises(ValueError, match="accumulation_steps=3 does not divide the batch of 8"):
        one.spec(Trial(number=1, point={"accumulation_steps": 3}))


def test_a_search_without_a_result_says_why(search: Callable[..., TaskSearch], played: Play, tmp_path: Path) -> None:
    played(fails=True)
    with pytest.raises(TrainingError, match="demo-tiny: no trial of the search has a result: no number"):
        outcomes_of(search(tmp_path, trials=2))
