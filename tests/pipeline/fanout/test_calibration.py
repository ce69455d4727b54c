"""Estimates are plain arithmetic on measured rates; a rate is measured once for each model and machine."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hst.backbone import load_backbone
from hst.config import HSN_PRESETS
from pipeline.cluster.ray_cluster import WorkerError, call_on_worker, connect, this_node
from pipeline.cluster.resources import Plan
from pipeline.fanout import calibration
from pipeline.fanout.calibration import (
    Rate,
    decoded_bytes,
    estimate_seconds,
    images_a_step,
    num_evaluations,
    rates_of,
    run_seconds,
    worker_bytes,
)
from pipeline.tasks.catalogue import TASKS
from pipeline.tasks.recipe import Recipe
from pipeline.training.on_ray.driver import put_backbone
from pipeline.workflow.job import TaskJob

RATE = Rate(train_seconds=0.5, eval_seconds=0.25, base_bytes=1000, image_bytes=10)
PLAN = Plan(num_workers=1, concurrent=1, cpus_per_worker=1, gpus_per_worker=0)
SAMPLES = {"train": 80, "val": 20, "trainval": 100, "test": 40}


def job(select: bool = True, samples: dict[str, int] = SAMPLES, hsn: str = "HSN_B", **recipe: Any) -> TaskJob:
    changed = Recipe(**({"image_size": 64, "batch_size": 32, "epochs": 10} | recipe))
    config = HSN_PRESETS[hsn].resolve(8)
    task = TASKS["demo-digits"]
    return TaskJob(task=task, recipe=changed, hsn=config, seed=0, data="/data", num_samples=samples, select=select)


def test_a_training_takes_its_images_and_its_evaluations() -> None:
    counts = {"images": 80, "epochs": 10, "eval_images": 20, "evaluations": 3}
    assert estimate_seconds(**counts, rate=RATE) == 80 * 10 * 0.5 + 20 * 3 * 0.25
    assert estimate_seconds(**counts, rate=RATE, num_workers=4) == estimate_seconds(**counts, rate=RATE) / 4


@pytest.mark.parametrize(("epochs", "evaluations"), [(1, 1), (5, 5), (10, 10), (25, 13), (100, 10)])
def test_val_is_looked_at_each_tenth_of_the_epochs_and_at_the_last(epochs: int, evaluations: int) -> None:
    assert num_evaluations(Recipe(epochs=epochs)) == evaluations


def test_the_two_runs_have_their_own_images() -> None:
    assert run_seconds(job(), "selection", RATE, 1) == 64 * 10 * 0.5 + 20 * 10 * 0.25  # two whole batches of 2.5
    assert run_seconds(job(), "final", RATE, 2) == (96 * 10 * 0.5 + 40 * 0.25) / 2


def test_a_worker_has_its_part_of_a_part_of_the_batch() -> None:
    assert images_a_step(job(), 1) == 32
    assert images_a_step(job(accumulation_steps=4), 3) == 3
    assert images_a_step(job(batch_size=128), 1) == 100


def test_the_memory_of_a_worker_is_its_base_its_images_and_what_stays_decoded() -> None:
    decoded = (80 + 20) * 3 * 64 * 64
    assert worker_bytes(job(), RATE, PLAN) == 1000 + 32 * 10 + decoded
    in_range = dataclasses.replace(PLAN, num_workers=4, worker_range=(2, 4))
    assert worker_bytes(job(), RATE, in_range) == 1000 + 16 * 10 + decoded, "of the fewest, who have the most images"
    assert worker_bytes(job(), RATE, dataclasses.replace(PLAN, gpus_per_worker=1)) == 1000 + 32 * 10


def test_what_is_kept_decoded() -> None:
    one = 3 * 64 * 64
    assert decoded_bytes(job(select=False)) == 100 * one
    assert decoded_bytes(job(random_resized_crop=True)) == 20 * one
    assert decoded_bytes(job(samples={**SAMPLES, "train": (4 << 30) // one + 1})) == 20 * one


class Workers:
    """Stands in for the cluster: it says which machine it is and takes measurements from a table."""

    def __init__(self) -> None:
        self.measured: list[list[int]] = []
        self.hardware = "2 cores"
        self.nodes: list[str] = []

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if function is calibration._where:
            return "a node", {"hardware": self.hardware, "versions": {}}
        self.nodes.append(options["node"])
        (_, _, models) = arguments
        self.measured.append([model["recipe"]["image_size"] for model in models])
        return [{**vars(RATE), "image_bytes": model["recipe"]["image_size"]} for model in models]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    found = Workers()
    monkeypatch.setattr(calibration, "call_on_worker", found.call)
    return found


def rates(jobs: list[TaskJob], storage: Path, plan: Plan = PLAN, identity: str = "0" * 64) -> list[Rate]:
    backbone: Any = SimpleNamespace(name="vit", identity=identity)
    return rates_of(jobs, plan, backbone=backbone, shared=None, storage=str(storage))[0]


def test_each_model_is_measured_once_and_then_found(workers: Workers, tmp_path: Path) -> None:
    jobs = [job(), job(epochs=3, learning_rate=1e-2), job(image_size=96)]
    assert [rate.image_bytes for rate in rates(jobs, tmp_path)] == [64, 64, 96]
    assert workers.measured == [[96, 64]]
    assert rates(jobs, tmp_path) == rates(jobs, tmp_path)
    assert workers.measured == [[96, 64]]
    rates([*jobs, job(image_size=32)], tmp_path)
    assert workers.measured == [[96, 64], [32]], "what is new alone"
    assert set(workers.nodes) == {"a node"}, "the one that is named is measured"


def test_another_machine_backbone_or_number_of_threads_is_measured_anew(workers: Workers, tmp_path: Path) -> None:
    rates([job()], tmp_path)
    rates([job()], tmp_path, identity="1" * 64)
    rates([job()], tmp_path, plan=dataclasses.replace(PLAN, cpus_per_worker=2))
    rates([job(precision="float64")], tmp_path)
    rates([job(hsn="HSN_S")], tmp_path)
    workers.hardware = "64 cores"
    rates([job()], tmp_path)
    assert len(workers.measured) == 6


def test_the_three_of_most_pixels_are_measured_and_the_others_scaled_from_the_likest(
    workers: Workers, tmp_path: Path
) -> None:
    jobs = [job(image_size=32), job(image_size=64), job(image_size=96, hsn="HSN_S"), job(image_size=128)]
    found = rates(jobs, tmp_path)
    assert workers.measured == [[128, 96, 64]]
    assert found[0] == found[1].scaled(0.25)
    assert found[0].train_seconds == RATE.train_seconds / 4
    assert (found[0].image_bytes, found[0].base_bytes) == (16, RATE.base_bytes)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connect():
        yield


@pytest.mark.ray
def test_a_worker_measures_a_model_and_a_second_run_finds_it(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone("hst_vit_micro_patch8_64", "random")
    jobs = [job(image_size=32, batch_size=4), job(image_size=64, batch_size=4)]
    shared = put_backbone(backbone)
    small, large = rates_of(jobs, PLAN, backbone=backbone, shared=shared, storage=str(tmp_path))[0]
    assert 0 < small.image_bytes < large.image_bytes
    assert min(small.train_seconds, small.eval_seconds, small.base_bytes, small.device_bytes + 1) > 0
    called: list[object] = []

    def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        called.append(function)
        return call_on_worker(function, *arguments, **options)

    monkeypatch.setattr(calibration, "call_on_worker", call)
    again, hardware = rates_of(jobs, PLAN, backbone=backbone, shared=shared, storage=str(tmp_path))
    assert again == [small, large]
    assert called == [calibration._where]
    assert "cores of" in hardware


@pytest.mark.ray
def test_a_call_on_a_worker_that_fails_or_is_not_back_is_told(cluster: None) -> None:
    with pytest.raises(WorkerError, match="JSONDecodeError: Expecting value"):
        call_on_worker(json.loads, "", cpus=1, gpus=0, patience=60)
    with pytest.raises(WorkerError, match="no worker of 1000 CPUs and 0 GPUs was back within 0 s"):
        call_on_worker(json.dumps, [], cpus=1000, gpus=0, patience=0.1)


@pytest.mark.ray
def test_a_call_runs_on_the_node_that_is_asked_for(cluster: None) -> None:
    node = call_on_worker(this_node, cpus=1, gpus=0, patience=60)
    assert call_on_worker(this_node, cpus=1, gpus=0, patience=60, node=node) == node
    with pytest.raises(WorkerError):
        call_on_worker(this_node, cpus=1, gpus=0, patience=20, node="0" * (len(node) - 1) + "1")
