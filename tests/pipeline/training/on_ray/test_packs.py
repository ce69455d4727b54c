"""Packs on a real local Ray cluster: a killed worker, and tasks that fail, are told to stop, or wait."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from hst.backbone import Backbone
from pipeline.cluster.ray_cluster import connect
from pipeline.cluster.resources import Plan
from pipeline.training import checkpoints
from pipeline.training.checkpoints import RunResult
from pipeline.training.loop import fit
from pipeline.training.on_ray import packs
from pipeline.training.on_ray.driver import MAX_RESTARTS, put_backbone
from pipeline.training.on_ray.pack_worker import ENDED, FAILED, JOIN, ROWS, SAVED, TOGETHER
from pipeline.training.on_ray.packs import Packs
from pipeline.training.stopped import Stopped
from pipeline.training.task_run import RunState, TrainingError
from pipeline.training.unit import RunSpec, build_run
from pipeline.training.workers import Workers
from tests.pipeline.training.on_ray.test_driver import train_workers

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
Spec = Callable[..., RunSpec]
Rows = list[tuple[int, int]]
PACK_OF_TWO = Plan(num_workers=1, concurrent=2, pack=2, cpus_per_worker=1, gpus_per_worker=0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connect():
        yield


@pytest.fixture
def two(cluster: None, tiny_backbone: Backbone, tmp_path: Path) -> Iterator[Packs]:
    made = packs_of(put_backbone(tiny_backbone), tiny_backbone, tmp_path)
    yield made
    made.close()
    assert not list((tmp_path / "ray").rglob("*.json")), "nothing of Ray's own is left"


def packs_of(shared: Any, backbone: Backbone, root: Path) -> Packs:
    return Packs(
        backbone=shared,
        backbone_name=backbone.name,
        backbone_identity=backbone.identity,
        float64=True,
        plan=PACK_OF_TWO,
        folder=str(root / "ray"),
        seconds_between_reports=0,
        seconds_between_pauses=0,
    )


def specs_of(tiny_spec: Spec, seed: int, epochs: int) -> list[RunSpec]:
    """Specs of the tiny task under other names, each with its own draws."""
    specs = [tiny_spec(kind, seed=seed, epochs=epochs) for kind in ("selection", "final")]
    return [RunSpec(**{**spec.to_dict(), "task": f"task-{seed}"}) for spec in specs]


def assert_as_alone(results: list[RunResult], specs: list[RunSpec], backbone: Backbone) -> None:
    backbone = backbone.double()
    states: list[RunState] = fit(
        [build_run(spec, backbone, Workers()) for spec in specs], workers=Workers(), report=lambda *_: None
    )
    for result, state in zip(results, states, strict=True):
        assert result.results["metrics"] == state.results["metrics"]
        losses = [[row["train/loss"] for row in rows] for rows in (result.history, state.history)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-8)
        for name, value in state.run.model.state_dict().items():
            torch.testing.assert_close(result.tensors[name], value, rtol=1e-8, atol=1e-8, msg=name)


def test_three_tasks_in_a_pack_of_two_whose_worker_is_killed(
    two: Packs, tiny_spec: Spec, tiny_backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units = [specs_of(tiny_spec, seed, epochs) for seed, epochs in ((0, 10), (1, 2), (2, 4))]
    killed = threading.Event()
    rows: list[Rows] = [[] for _ in units]

    def train(i: int) -> list[RunResult]:
        def on_rows(run: int, new: list[dict[str, Any]]) -> None:
            rows[i].extend((run, row["epoch"]) for row in new)
            if i == 0 and not killed.is_set():
                killed.set()
                (worker,) = train_workers()
                worker.kill()

        return two.train(units[i], folder=str(tmp_path / f"unit-{i}"), attempt=1, on_rows=on_rows)

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(train, range(3)))
    assert killed.is_set()
    said = capsys.readouterr().out
    assert "again from what was saved (1 of 3, 2 at a time)" in said, "as many as before"
    for i, specs in enumerate(units):
        epochs = specs[0].recipe["epochs"]
        assert set(rows[i]) == {(run, epoch) for run in (0, 1) for epoch in range(1, epochs + 1)}
        assert_as_alone(results[i], specs, tiny_backbone)


def test_of_two_in_a_pack_one_fails_and_is_told_why_and_one_is_stopped_and_goes_on(
    two: Packs, tiny_spec: Spec, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    broken = specs_of(tiny_spec, 3, 30)
    for spec in broken:
        spec.data_sha256["val" if spec.protocol == "selection" else "test"] = "0" * 64
    stopped = specs_of(tiny_spec, 4, 40)
    begun = threading.Event()

    def train(specs: list[RunSpec], until: Callable[[], bool], attempt: int = 1) -> list[RunResult]:
        def on_rows(run: int, new: list[dict[str, Any]]) -> None:
            begun.set()

        folder = str(tmp_path / specs[0].task)
        return two.train(specs, folder=folder, attempt=attempt, on_rows=on_rows, stopped=until)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.submit(train, stopped, begun.is_set), pool.submit(train, broken, lambda: False)
        with pytest.raises(TrainingError, match="the data was changed after this run began"):
            other.result()
        with pytest.raises(Stopped):
            one.result()
    saved = checkpoints.find(str(tmp_path / "task-4"))
    assert saved is not None
    assert (0, 0) < saved.progress < (80, 0)
    assert_as_alone(train(stopped, lambda: False, attempt=2), stopped, tiny_backbone)


class Box:
    """Stands in for a mailbox and keeps what a worker is told."""

    def __init__(self) -> None:
        self.handle = None
        self.joined: list[str] = []

    def tell(self, what: str, key: str = "", *_: Any) -> None:
        if what == JOIN:
            self.joined.append(key)

    def close(self) -> None:
        pass


def unit(task: str, on_rows: Any = lambda *_: None, say: Any = print) -> packs._Unit:
    return packs._Unit(task=task, key=task, specs=[], folder="", attempt=1, on_rows=on_rows, say=say)


Worker = Callable[[Box, Callable[..., None]], BaseException | None]


def trains(box: Box, told: Callable[..., None]) -> None:
    for key in box.joined:  # the list grows by the tasks that waited
        told(ENDED, key)


def fails_together(error: Exception) -> Worker:
    def run(box: Box, told: Callable[..., None]) -> BaseException:
        told(TOGETHER, "", f"{type(error).__name__}: {error}")
        return error

    return run


def is_lost(box: Box, told: Callable[..., None]) -> BaseException:
    return RuntimeError("A worker health check failed")


def saves_and_is_lost(box: Box, told: Callable[..., None]) -> BaseException:
    told(SAVED, box.joined[0])
    return is_lost(box, told)


def ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: list[Worker]
) -> tuple[list[list[str]], list[BaseException | None], list[str]]:
    """Trains three tasks in a pack of three with such workers.

    Returns what each worker was told to train, how each task ended, and the lines that were printed.
    """
    starts: list[list[str]] = []
    said: list[str] = []
    ready, left = threading.Event(), iter(workers)

    def run_trainer(_: object, box: Box, told: Callable[..., None], stopped: object) -> BaseException | None:
        ready.wait(10)
        starts.append(box.joined)
        return next(left)(box, told)

    monkeypatch.setattr(packs, "Mailbox", Box)
    monkeypatch.setattr(packs, "torch_trainer", lambda *_, **__: None)
    monkeypatch.setattr(packs, "run_trainer", run_trainer)
    plan = Plan(num_workers=1, concurrent=3, pack=3, cpus_per_worker=1, gpus_per_worker=0)
    pack = packs._Pack({}, plan, str(tmp_path), said.append)
    units = [unit(task, say=said.append) for task in ("a", "b", "c")]
    for one in units:
        pack.add(one)
    ready.set()
    for one in units:
        assert one.done.wait(10)
    return starts, [one.error for one in units], said


def test_what_fails_where_all_compute_together_is_tried_by_fewer_and_fails_where_it_is_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workers = [fails_together(RuntimeError("CUDA out of memory")), fails_together(ValueError("no such class")), trains]
    starts, errors, said = ends(monkeypatch, tmp_path, workers)
    assert starts == [["a", "b", "c"], ["a"], ["b", "c"]]
    assert [str(error) for error in errors] == ["ValueError: no such class", "None", "None"]
    assert said == ["a, b, c: RuntimeError: CUDA out of memory; again from what was saved (1 of 3, 1 at a time)"]


def test_a_worker_that_is_lost_is_started_again_with_all_its_tasks_as_often_as_something_was_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts, errors, said = ends(monkeypatch, tmp_path, [*[saves_and_is_lost] * 9, trains])
    assert starts == [["a", "b", "c"]] * 10
    assert errors == [None] * 3
    assert all("A worker health check failed; again from what was saved (1 of 3, 3 at a time)" in line for line in said)


def test_a_worker_that_is_lost_again_and_again_has_fewer_tasks_and_then_they_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts, errors, _ = ends(monkeypatch, tmp_path, [is_lost] * 12)
    assert starts[:3] == [["a", "b", "c"], ["a", "b", "c"], ["a"]], "it may be that memory does not suffice"
    assert len(starts) <= 2 * (MAX_RESTARTS + 1) + 4
    assert all(isinstance(error, TrainingError) for error in errors)


def test_what_goes_wrong_around_the_workers_ends_all_that_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_mailbox() -> Any:
        raise OSError("Ray is gone")

    monkeypatch.setattr(packs, "Mailbox", no_mailbox)
    plan = Plan(num_workers=1, concurrent=2, pack=2, cpus_per_worker=1, gpus_per_worker=0)
    pack = packs._Pack({}, plan, str(tmp_path), print)
    for task in ("a", "b"):  # the second task needs another thread
        one = unit(task)
        pack.add(one)
        assert one.done.wait(10)
        assert str(one.error) == "Ray is gone"
    pack.closed.set()
    pack.wait(10)


def test_a_task_that_is_leaving_does_not_come_back_when_its_save_fails(tmp_path: Path) -> None:
    plan = Plan(num_workers=1, concurrent=2, pack=2, cpus_per_worker=1, gpus_per_worker=0)
    pack, one, box = packs._Pack({}, plan, str(tmp_path), print), unit("a"), Box()
    pack._units, pack._mailbox = {"a": one}, box  # type: ignore[assignment]
    pack._send()
    pack.let_go(one)
    pack._told(FAILED, "a", False, "s3://bucket: answered 503")
    assert isinstance(one.error, Stopped)
    assert box.joined == ["a"]
    assert not len(pack)


def test_a_task_whose_rows_cannot_be_recorded_ends_with_that_and_the_others_go_on(tmp_path: Path) -> None:
    plan = Plan(num_workers=1, concurrent=2, pack=2, cpus_per_worker=1, gpus_per_worker=0)
    pack = packs._Pack({}, plan, str(tmp_path), print)
    kept: list[int] = []

    def refuse(run: int, rows: list[dict[str, Any]]) -> None:
        raise OSError("the ledger's disk is full")

    units = {"a": unit("a", refuse), "b": unit("b", lambda run, rows: kept.append(run))}
    pack._units = dict(units)
    pack._mailbox = Box()  # type: ignore[assignment]
    for key in units:
        pack._told(ROWS, key, 0, [{"epoch": 1}])
    assert isinstance(units["a"].error, OSError)
    assert kept == [0]
    assert not units["b"].done.is_set()
