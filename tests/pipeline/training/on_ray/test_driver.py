"""Units on a real local Ray cluster: a killed worker, a mistake that is not retried, two workers on loopback."""

import dataclasses
import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from hst.backbone import Backbone
from pipeline.cluster.ray_cluster import connect
from pipeline.cluster.resources import Plan
from pipeline.data.batches.order import shuffled_order
from pipeline.data.shards.index import load_index
from pipeline.data.shards.manifest import load_manifest
from pipeline.storage.files import StorageError
from pipeline.training import checkpoints
from pipeline.training.checkpoints import RunResult
from pipeline.training.loop import fit
from pipeline.training.on_ray import driver
from pipeline.training.on_ray.driver import MAX_RESTARTS, put_backbone, train_unit
from pipeline.training.stopped import Stopped
from pipeline.training.task_run import TrainingError, is_mistake
from pipeline.training.unit import RunSpec, build_run
from pipeline.training.workers import Workers

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
ONE_WORKER = Plan(num_workers=1, concurrent=1, cpus_per_worker=1, gpus_per_worker=0)
TWO_WORKERS = Plan(num_workers=2, concurrent=1, cpus_per_worker=1, gpus_per_worker=0)
Rows = list[tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connect():
        yield


def train(
    specs: list[RunSpec],
    backbone: Backbone,
    folder: Path,
    plan: Plan = ONE_WORKER,
    on_row: Callable[[], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    attempt: int = 1,
) -> tuple[list[RunResult], Rows]:
    rows: Rows = []

    def on_rows(run: int, new: list[dict[str, Any]]) -> None:
        rows.extend((run, row) for row in new)
        if on_row is not None:
            on_row()

    results = train_unit(
        specs,
        backbone=put_backbone(backbone),
        plan=plan,
        folder=str(folder),
        attempt=attempt,
        on_rows=on_rows,
        stopped=stopped,
        seconds_between_reports=0,
        seconds_between_pauses=0,
    )
    return results, rows


def train_workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_unit_whose_worker_was_killed_ends_with_the_bits_of_one_that_was_not(
    cluster: None, tiny_spec: Callable[..., RunSpec], tiny_backbone: Backbone, tmp_path: Path
) -> None:
    specs = [tiny_spec("selection", epochs=12), tiny_spec("final", epochs=12)]
    killed: list[int] = []

    def kill_once() -> None:
        if not killed:
            (worker,) = train_workers()
            killed.append(worker.pid)
            worker.kill()

    results, rows = train(specs, tiny_backbone, tmp_path, on_row=kill_once)
    assert len(killed) == 1
    assert {(run, row["epoch"]) for run, row in rows} == {(run, epoch) for run in (0, 1) for epoch in range(1, 13)}
    torch.set_num_threads(1)
    backbone = tiny_backbone.double()
    expected = fit([build_run(spec, backbone, Workers()) for spec in specs], workers=Workers(), report=lambda *_: None)
    for result, state in zip(results, expected, strict=True):
        assert result.results["metrics"] == state.results["metrics"]
        for name, value in state.run.model.state_dict().items():
            assert torch.equal(result.tensors[name], value), name


@pytest.mark.parametrize(
    ("cause", "mistake"),
    [
        (TrainingError("nan"), True),
        (ValueError("label"), True),
        (StorageError("reset"), False),
        (OSError("gone"), False),
    ],
)
def test_storage_that_does_not_answer_is_tried_again_and_a_mistake_is_not(cause: Exception, mistake: bool) -> None:
    assert is_mistake(cause) == mistake


def test_a_finished_unit_is_not_trained_again(
    cluster: None, tiny_spec: Callable[..., RunSpec], tiny_backbone: Backbone, tmp_path: Path
) -> None:
    first, _ = train([tiny_spec()], tiny_backbone, tmp_path)
    again, rows = train([tiny_spec()], tiny_backbone, tmp_path)
    assert again[0].history == first[0].history
    assert [row["epoch"] for _, row in rows] == [1, 2, 3]  # from the checkpoint, once


def test_a_mistake_is_told_once_and_not_tried_again(
    cluster: None,
    tiny_spec: Callable[..., RunSpec],
    tiny_backbone: Backbone,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(TrainingError, match="the training loss of epoch"):
        train([tiny_spec(learning_rate=1e30, precision="float32", epochs=4)], tiny_backbone, tmp_path)
    assert "starting again" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "plan",
    [pytest.param(ONE_WORKER, id="one worker"), pytest.param(TWO_WORKERS, id="two workers")],
)
@pytest.mark.slow
def test_a_unit_that_is_told_to_stop_saves_its_state_and_goes_on_from_there(
    plan: Plan, cluster: None, tiny_spec: Callable[..., RunSpec], tiny_backbone: Backbone, tmp_path: Path
) -> None:
    spec = tiny_spec(epochs=16)
    begun: list[bool] = []
    with pytest.raises(Stopped):
        train([spec], tiny_backbone, tmp_path, plan, lambda: begun.append(True), stopped=lambda: bool(begun))
    saved = checkpoints.find(str(tmp_path))
    assert saved is not None
    assert (1, 0) <= saved.progress < (16, 0)
    (resumed,), rows = train([spec], tiny_backbone, tmp_path, plan, attempt=2)
    assert rows[0][1]["epoch"] == saved.progress[0] + 1
    torch.set_num_threads(1)
    (expected,) = fit([build_run(spec, tiny_backbone.double(), Workers())], workers=Workers(), report=lambda *_: None)
    for name, value in expected.run.model.state_dict().items():
        if plan is ONE_WORKER:
            assert torch.equal(resumed.tensors[name], value), name
        else:
            torch.testing.assert_close(resumed.tensors[name], value, rtol=1e-7, atol=1e-9)


def test_storage_that_stays_away_ends_the_unit_after_some_starts(
    cluster: None,
    tiny_spec: Callable[..., RunSpec],
    tiny_backbone: Backbone,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts: list[object] = []

    def fit_without_storage(trainer: object, *_: object) -> StorageError:
        starts.append(trainer)
        return StorageError("s3://bucket/a: answered 503; given up after 5 failures")

    monkeypatch.setattr(driver, "run_trainer", fit_without_storage)
    with pytest.raises(TrainingError, match=r"failed 4 times, at last with StorageError\(.*answered 503"):
        train([tiny_spec()], tiny_backbone, tmp_path)
    assert len(starts) == MAX_RESTARTS + 1 == 4
    assert capsys.readouterr().out.count("answered 503; given up after 5 failures; again from the last report") == 3


def test_a_disk_that_is_full_is_named_and_nothing_is_tried_again(
    cluster: None,
    tiny_spec: Callable[..., RunSpec],
    tiny_backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts: list[object] = []

    def fit_without_room(trainer: object, *_: object) -> OSError:
        starts.append(trainer)
        return OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(driver, "run_trainer", fit_without_room)
    with pytest.raises(TrainingError, match=rf"^{tmp_path}: No space left on device; make room there"):
        train([tiny_spec()], tiny_backbone, tmp_path)
    assert len(starts) == 1


def test_a_training_that_gets_on_may_lose_its_workers_any_number_of_times(
    cluster: None,
    tiny_spec: Callable[..., RunSpec],
    tiny_backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts: list[object] = []
    losses = 2 * MAX_RESTARTS

    def fit_until_the_worker_is_lost(trainer: object, *_: object) -> OSError | None:
        starts.append(trainer)
        return OSError("the worker died") if len(starts) <= losses else None

    def found(*_: object, **__: object) -> Any:
        """Finds one more report in storage after each start."""
        if not starts:
            return None
        done = len(starts) > losses
        return SimpleNamespace(progress=(len(starts), 0), finished=done, states=list, results=list)

    monkeypatch.setattr(driver, "run_trainer", fit_until_the_worker_is_lost)
    monkeypatch.setattr(checkpoints, "find", found)
    train([tiny_spec()], tiny_backbone, tmp_path)
    assert len(starts) == losses + 1


@pytest.mark.slow
def test_a_damaged_sample_of_one_worker_ends_the_unit_for_both(
    cluster: None,
    tiny_spec: Callable[..., RunSpec],
    tiny_backbone: Backbone,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The other worker waits for its part of the first gradient. It does not wait for ever, and nothing is retried."""
    # Augmented images are read from the shards in every epoch; the other runs of this module may share decoded ones.
    spec = tiny_spec(random_resized_crop=True)
    root, shards = Path(spec.train).parents[2], tmp_path / "shards"
    shutil.copytree(root, shards)
    train_uri, val_uri = (str(shards / Path(uri).relative_to(root)) for uri in (spec.train, spec.evaluate))
    spec = dataclasses.replace(spec, train=train_uri, evaluate=val_uri)
    manifest = load_manifest(spec.train)
    index = load_index(manifest)
    number = shuffled_order([23], (spec.seed, spec.task, "order"), 0).samples[4]  # rank 1's first image in a batch of 8
    entry = index.entries[number]
    path = Path(manifest.shard_uri(manifest.shards[index.shards[number]]))
    data = bytearray(path.read_bytes())
    data[entry.image_offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(TrainingError, match=f"train-000000.tar: sample '{entry.key}': its .* bytes have the sha256"):
        train([spec], tiny_backbone, tmp_path, plan=TWO_WORKERS)
    assert "starting again" not in capsys.readouterr().out


@pytest.mark.slow
def test_two_workers_listen_on_loopback_alone(
    cluster: None, tiny_spec: Callable[..., RunSpec], tiny_backbone: Backbone, tmp_path: Path
) -> None:
    addresses: set[str] = set()
    seen: set[int] = set()

    def look() -> None:
        for worker in train_workers():
            try:
                connections = worker.net_connections(kind="inet")
            except psutil.NoSuchProcess:  # the worker had ended before its rows arrived
                continue
            seen.add(worker.pid)
            addresses.update(c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN)

    (result,), _ = train([tiny_spec(epochs=15)], tiny_backbone, tmp_path, plan=TWO_WORKERS, on_row=look)
    assert len(seen) == 2
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert result.results["num_workers"] == 2
    assert sum(map(sum, result.results["confusion/val"])) == 9
