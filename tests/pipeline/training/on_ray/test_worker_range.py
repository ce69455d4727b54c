"""A range of workers on two nodes: one node is killed in mid-training, another comes, and the result is that of one
worker."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from ray.cluster_utils import Cluster

from hst.backbone import Backbone
from pipeline.cluster.ray_cluster import connect, living_nodes
from pipeline.cluster.resources import plan_resources
from pipeline.storage.files import StorageError
from pipeline.training import checkpoints
from pipeline.training.loop import fit
from pipeline.training.on_ray import worker
from pipeline.training.on_ray.driver import put_backbone, train_unit
from pipeline.training.unit import RunSpec, build_run
from pipeline.training.workers import Workers

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.1"}


def nobody(*_: object) -> None:
    """Ignores new rows."""


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes of one CPU each, on loopback; this process is a driver on the first."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        cluster.add_node(**NODE)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with connect():
            yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_a_unit_loses_a_node_and_gains_one_and_ends_with_the_result_of_one_worker(
    two_nodes: Cluster, tiny_spec: Callable[..., RunSpec], tiny_backbone: Backbone, tmp_path: Path
) -> None:
    spec = tiny_spec(epochs=90)  # two reports an epoch, and Ray takes five a second: at least 36 s
    plan = plan_resources(living_nodes(), num_tasks=1, num_workers=(1, 2), max_concurrent=None)
    assert (plan.num_workers, plan.asked_workers) == (2, (1, 2))
    (second,) = two_nodes.worker_nodes
    rows: list[dict[str, Any]] = []

    def on_rows(run: int, new: list[dict[str, Any]]) -> None:
        rows.extend(row for row in new if "num_workers" in row)  # the last rows come from the checkpoint
        sizes = [size for size, _ in itertools.groupby(row["num_workers"] for row in rows)]
        if sizes == [2] and second in two_nodes.worker_nodes:
            two_nodes.remove_node(second, allow_graceful=False)
        elif sizes == [2, 1] and not two_nodes.worker_nodes:
            two_nodes.add_node(**NODE)

    (result,) = train_unit(
        [spec],
        backbone=put_backbone(tiny_backbone),
        plan=plan,
        folder=str(tmp_path / "unit"),
        attempt=1,
        on_rows=on_rows,
        seconds_between_reports=0,
        seconds_between_pauses=0,
        seconds_between_resizes=1,
    )
    groups = [(size, list(group)) for size, group in itertools.groupby(rows, key=lambda row: row["num_workers"])]
    assert [size for size, _ in groups] == [2, 1, 2]
    (_, alone), (_, grown) = groups[1:]
    assert grown[0]["epoch"] >= alone[-1]["epoch"] - 2, "the grown group went on from Ray's latest checkpoint"
    assert [row["epoch"] for row in result.history] == list(range(1, 91))
    torch.set_num_threads(1)
    (expected,) = fit([build_run(spec, tiny_backbone.double(), Workers())], workers=Workers(), report=nobody)
    assert result.results["confusion/val"] == expected.results["confusion/val"]
    for name, value in expected.run.model.state_dict().items():
        torch.testing.assert_close(result.tensors[name], value, rtol=1e-7, atol=1e-8)


def test_workers_that_ray_starts_anew_believe_its_checkpoint_only_if_it_is_whole(
    tiny_spec: Callable[..., RunSpec], tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (state,) = fit(
        [build_run(tiny_spec(epochs=1), tiny_backbone.double(), Workers())], workers=Workers(), report=nobody
    )
    checkpoints.save(tmp_path, [state])
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: ray.train.Checkpoint.from_directory(tmp_path))
    found = worker._resume_states(None)
    assert found is not None
    assert found[0]["cursor"] == {"epoch": 1, "position": 0}
    data = bytearray((tmp_path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "state.pt").write_bytes(data)
    with pytest.raises(StorageError, match="the latest checkpoint is not whole"):
        worker._resume_states(None)
