"""Trials on a real local Ray cluster: stopped, failed, killed, told to stop; with the results of plain runs."""

import contextlib
import dataclasses
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from hst.backbone import Backbone
from pipeline.cluster.ray_cluster import connect
from pipeline.cluster.resources import Room
from pipeline.drill.cluster import wait_until
from pipeline.search import tuning
from pipeline.search.sampler import Sampler
from pipeline.search.space import Choice, Space
from pipeline.search.trials import Record, Trial, Trials
from pipeline.search.tuning import run_trials
from pipeline.storage.files import StorageError
from pipeline.tasks.kinds import TOP1
from pipeline.training.loop import fit
from pipeline.training.on_ray.driver import put_backbone
from pipeline.training.stopped import Stopped
from pipeline.training.task_run import TrainingError
from pipeline.training.unit import RunSpec, build_run
from pipeline.training.workers import Workers

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
SPACE: Space = {"learning_rate": Choice((1e-3, 2e-3, 3e-3, 4e-3)), "weight_decay": Choice((0.0, 1e-3, 1e-2))}
EPOCHS = 6
Search = Callable[..., dict[int, Record]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connect():
        yield
    logging.getLogger("ray.tune").setLevel(logging.NOTSET)


def trial_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ImplicitFunc" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture
def search(cluster: None, tiny_spec: Callable[..., RunSpec], tiny_backbone: Backbone, tmp_path: Path) -> Search:
    """Runs a search and gives the records of its trials."""

    def run(
        count: int = 4,
        at_once: int = 1,
        epochs: int = EPOCHS,
        on_rows: Callable[[Trial], None] = lambda trial: None,
        stopped: Callable[[], bool] = lambda: False,
        keep: Callable[[Record], None] = lambda record: None,
        said: list[str] | None = None,
        attempt: int = 1,
        default: dict[str, Any] | None = None,
        folder: Path = tmp_path,
        change: Callable[[RunSpec], RunSpec] = lambda spec: spec,
        **options: Any,
    ) -> dict[int, Record]:
        trials = Trials(
            default=default or {"learning_rate": 5e-3, "weight_decay": 0.0},
            sampler=Sampler(SPACE, algorithm="random", seed=0, task="t", measure=TOP1),
            count=count,
            epochs=epochs,
            measure=TOP1,
            keep=keep,
            **options,
        )
        run_trials(
            trials,
            lambda trial: change(tiny_spec(epochs=epochs, **trial.point)),
            folder_of=lambda trial: str(folder / str(trial.number)),
            attempt=attempt,
            backbone=put_backbone(tiny_backbone),
            room=Room(at_once=at_once, cpus=1, gpus=0),
            on_rows=lambda trial, rows: on_rows(trial),
            say=(said if said is not None else []).append,
            stopped=stopped,
        )
        return trials.records

    return run


def values(record: Record) -> list[float]:
    return [row["train/loss"] for row in record.rows]


@pytest.fixture
def plain(tiny_spec: Callable[..., RunSpec], tiny_backbone: Backbone) -> Callable[[Record], list[float]]:
    """The losses of a record's run, made here and now."""

    def run(record: Record) -> list[float]:
        build = build_run(tiny_spec(epochs=len(record.rows), **record.point), tiny_backbone.double(), Workers())
        (state,) = fit([build], workers=Workers(), report=lambda *_: None)
        return [float(row["train/loss"]) for row in state.history]

    return run


def test_trials_one_after_another_in_one_process_are_plain_runs(
    search: Search, plain: Callable[[Record], list[float]]
) -> None:
    pids: set[int] = set()
    records = search(on_rows=lambda trial: pids.update(process.pid for process in trial_processes()))
    assert sorted(records) == [0, 1, 2, 3]
    assert len(pids) == 1, "an actor has one trial after another"
    for record in records.values():
        assert values(record) == plain(record)


def test_a_trial_that_is_behind_is_stopped_and_the_next_one_runs(search: Search) -> None:
    records = search(count=6, rungs=(2,), at_once=2)
    lengths = {number: len(record.rows) for number, record in records.items()}
    assert lengths[0] == EPOCHS
    assert sorted(records) == list(range(6))
    assert min(lengths.values()) < EPOCHS


def test_a_killed_trial_goes_on_and_ends_as_a_plain_run(search: Search, plain: Callable[[Record], list[float]]) -> None:
    killed: list[int] = []
    said: list[str] = []

    def kill_once(trial: Trial) -> None:
        if trial.number == 1 and not killed:
            (process,) = trial_processes()
            killed.append(process.pid)
            process.kill()

    records = search(count=3, on_rows=kill_once, said=said)
    assert len(killed) == 1
    assert said == ["trial 1: lost its process; again from its last save (1 of 3)"]
    assert sorted(records) == [0, 1, 2]
    for record in records.values():
        assert values(record) == plain(record)


@pytest.mark.slow
def test_a_trial_that_is_killed_again_and_again_ends_the_search(search: Search) -> None:
    over = threading.Event()

    def kill_all() -> None:
        while not over.wait(0.05):
            for process in trial_processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    killer = threading.Thread(target=kill_all)
    killer.start()
    said: list[str] = []
    try:
        with pytest.raises(
            TrainingError, match=r"trial 0 failed 4 times, at last: lost its process|could not be start"
        ):
            search(count=2, said=said)
    finally:
        over.set()
        killer.join()


def test_a_trial_whose_loss_is_no_number_has_failed_and_the_others_go_on(search: Search) -> None:
    records = search(count=2, default={"learning_rate": 1e300, "weight_decay": 0.0})
    assert records[0].failed is not None
    assert "training loss of epoch" in records[0].failed
    assert records[1].failed is None


@pytest.mark.slow
def test_a_search_that_has_no_place_says_so_and_goes_on_when_it_has_one(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "SECONDS_UNTIL_TOLD", 2.0)
    others = ray.remote(num_cpus=int(ray.cluster_resources()["CPU"]))(_Others).remote()
    ray.get(others.work.remote())
    said: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        records = pool.submit(search, count=1, epochs=1, said=said)
        try:
            assert wait_until(lambda: len(said) == 1, 60), said
        finally:
            ray.kill(others)
        assert len(records.result()[0].rows) == 1
    assert [re.sub(r"\d+ s", "N s", line) for line in said] == [
        "no trial has begun for N s; each needs 1 free CPU on a node",
        "a trial has begun",
    ]


class _Others:
    def work(self) -> None:
        """Holds its CPUs."""


def test_a_mistake_that_all_trials_would_share_ends_the_search(search: Search) -> None:
    said: list[str] = []
    changed = {"train": "0" * 64, "val": "0" * 64}
    with pytest.raises(TrainingError, match="expected 000000000000: the data was changed after this run began"):
        search(count=3, said=said, change=lambda spec: dataclasses.replace(spec, data_sha256=changed))
    assert said == [], "it is not tried again"


def test_what_storage_refuses_on_the_driver_ends_the_search_with_that(search: Search) -> None:
    def refuse(record: Record) -> None:
        raise StorageError("s3://bucket: answered 403")

    with pytest.raises(StorageError, match="answered 403"):
        search(count=2, keep=refuse)


def test_trials_that_are_told_to_stop_are_saved_and_finished_ones_are_not_repeated(
    search: Search, plain: Callable[[Record], list[float]], tmp_path: Path
) -> None:
    kept: dict[int, Record] = {}
    seen: list[int] = []

    def keep(record: Record) -> None:
        assert record.number not in kept
        kept[record.number] = record

    with pytest.raises(Stopped):
        search(
            count=2, epochs=20, keep=keep, on_rows=lambda trial: seen.append(trial.number), stopped=lambda: 1 in seen
        )
    assert list(kept) == [0]
    assert any((tmp_path / "1").rglob("complete.json"))
    records = search(count=2, epochs=20, keep=keep, find=lambda trial: kept.get(trial.number), attempt=2)
    assert sorted(records) == [0, 1]
    for record in records.values():
        assert values(record) == plain(record)


@pytest.mark.slow
def test_two_searches_at_once_do_not_touch_each_other(
    search: Search, plain: Callable[[Record], list[float]], tmp_path: Path
) -> None:
    """One ends long before the other, and takes with it what its trials ask."""
    with ThreadPoolExecutor(2) as pool:
        short = pool.submit(search, count=1, epochs=1)
        long = pool.submit(search, count=3, folder=tmp_path / "long")
        assert len(short.result()[0].rows) == 1
        records = long.result()
    assert sorted(records) == [0, 1, 2]
    for record in records.values():
        assert values(record) == plain(record)
