"""The paper's number stands beside ours for its own set-up alone."""

import dataclasses
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from hst.config import DEFAULT_BACKBONE, HSN_PRESETS
from pipeline.cluster.resources import Plan, Room
from pipeline.tasks.catalogue import TASKS
from pipeline.workflow.job import TaskJob, TaskWork, Training
from pipeline.workflow.published import published
from pipeline.workflow.record import RunRecord, metrics_of, records_of
from pipeline.workflow.site import Cluster, FrozenBackbone, Places, Reporting, Site
from pipeline.workflow.state import FanoutState
from pipeline.workflow.tracking import doubts_of

BACKBONE = FrozenBackbone(name=DEFAULT_BACKBONE, identity="0" * 64, depth=12, is_random=False, weights=None)
SITE = Site(
    backbone=BACKBONE,
    places=Places(storage="/storage", tracking_uri="sqlite:////mlflow.db", registry_prefix=""),
    cluster=Cluster(
        plan=Plan(num_workers=1, concurrent=1, cpus_per_worker=1, gpus_per_worker=0),
        room=Room(at_once=1, cpus=1, gpus=0),
        train=pytest.fail,
        cache_shards=False,
    ),
    reporting=Reporting(
        tracker=None,  # type: ignore[arg-type]
        state=FanoutState("/storage", "key"),
        key="key",
        say=print,
    ),
    stop=threading.Event(),
)


def on(**backbone: Any) -> Site:
    """The site with another backbone."""
    return dataclasses.replace(SITE, backbone=dataclasses.replace(BACKBONE, **backbone))


def job(hsn: str = "HSN_B", *, name: str = "vtab-dtd", num_registers: int = 1, **recipe: object) -> TaskJob:
    task = TASKS[name]
    config = dataclasses.replace(HSN_PRESETS[hsn], num_registers=num_registers).resolve(12)
    changed = dataclasses.replace(task.recipe, hsn=hsn, **recipe)  # type: ignore[arg-type]
    return TaskJob(task=task, recipe=changed, hsn=config, seed=0, data="/data")


def test_a_training_is_of_the_number_or_the_range_of_workers_that_was_asked_for() -> None:
    manifest = SimpleNamespace(class_names=("a", "b"), uri="/shards", sha256="0" * 64)
    manifests: Any = dict.fromkeys(("train", "val", "trainval", "test"), manifest)

    def fingerprint(**plan: Any) -> str:
        cluster = dataclasses.replace(SITE.cluster, plan=dataclasses.replace(SITE.cluster.plan, **plan))
        return Training.of(job(), dataclasses.replace(SITE, cluster=cluster), manifests).fingerprint

    by_two = fingerprint(num_workers=2)
    in_range = fingerprint(num_workers=2, worker_range=(1, 4))
    assert in_range == fingerprint(num_workers=3, worker_range=(1, 4)), "what the cluster holds now does not matter"
    assert len({by_two, in_range, fingerprint(num_workers=2, worker_range=(1, 3))}) == 3


def test_a_stored_record_of_a_run_is_read_and_written_as_it_is() -> None:
    stored = {
        "selection": {
            "history": [{"epoch": 1, "val/mae": 0.2}],
            "results": {"metrics": {"val/mae": 0.2}, "parameters": 7},
            "tensors": "train-0123456789abcdef-1-selection.safetensors",
            "code_version": "0.1.0",
        }
    }
    records = records_of(stored)
    assert isinstance(records["selection"], RunRecord)
    assert metrics_of(records) == {"val/mae": 0.2}
    assert {run: record.to_dict() for run, record in records.items()} == stored


def test_each_runs_evaluation_is_doubted_by_the_tasks_kind() -> None:
    def record(split: str, counts: list[list[int]]) -> RunRecord:
        results = {"metrics": {}, f"confusion/{split}": counts}
        return RunRecord(history=[{"train/loss": 0.01}], results=results, tensors="", code_version="")

    manifests: Any = {"test": SimpleNamespace(class_names=("cat", "dog"))}
    work = TaskWork(job=job(), site=SITE, key="key", manifests=manifests)
    records = {"selection": record("val", [[0, 4], [0, 4]]), "final": record("test", [[4, 0], [0, 4]])}
    assert doubts_of(work, records) == ("val: 'dog' is predicted for all 8 images",)


def test_a_task_without_a_selection_run_has_the_final_run_alone() -> None:
    manifest = SimpleNamespace(class_names=("a", "b"), uri="/shards", sha256="0" * 64)
    manifests: Any = dict.fromkeys(("train", "val", "trainval", "test"), manifest)
    both = Training.of(job(), SITE, manifests)
    final = Training.of(dataclasses.replace(job(), select=False), SITE, manifests)
    assert (both.protocols, final.protocols) == (["selection", "final"], ["final"])
    splits = {spec.protocol: list(spec.data_sha256) for spec in both.specs}
    assert splits == {"selection": ["train", "val"], "final": ["trainval", "test"]}


def test_the_papers_set_up_has_the_papers_number() -> None:
    assert published(job(), SITE) == 75.2
    assert published(job("HSN_S"), SITE) == 74.2


@pytest.mark.parametrize(
    "other", [job("HSN_L"), job(num_registers=4), job(head_input="side+cls"), job(image_size=112)], ids=range(4)
)
def test_another_side_network_head_or_size_has_none(other: TaskJob) -> None:
    assert published(other, SITE) is None


def test_another_backbone_or_random_weights_have_none() -> None:
    assert published(job(), on(name="vit_tiny_patch16_224")) is None
    assert published(job(), on(is_random=True)) is None


def test_the_number_on_an_mae_backbone_stands_beside_runs_on_that_backbone_alone() -> None:
    mae = on(name="vit_base_patch16_224.mae")
    cub = job(name="fgvc-cub200")
    assert (published(cub, SITE), published(cub, mae)) == (89.2, 78.7)
    assert published(job(), mae) is None
    assert published(job("HSN_S", name="fgvc-cub200"), mae) is None
    other = on(name="vit_large_patch16_224.mae")
    assert published(cub, other) is None
    nabirds = job(name="fgvc-nabirds")
    assert (published(nabirds, SITE), published(nabirds, mae)) == (None, None)
