"""A node is lost with everything on it, while other nodes can take over its work."""

from pathlib import Path

import pytest

from pipeline.data.demo import make_demo_data
from pipeline.drill.cluster import LocalCluster, wait_until
from tests.jobs.fanout_process import assert_equal, command, run, start, tensors, wait_for_epochs

TASKS = ("demo-digits", "demo-shape_x")

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]


def test_a_fan_out_that_loses_a_node_ends_on_the_others_with_equal_results(
    two_nodes: LocalCluster, tmp_path: Path
) -> None:
    make_demo_data(tmp_path / "data")
    whole = run(tmp_path, command(tmp_path, "whole", tasks=",".join(TASKS), epochs=5), two_nodes.environment)
    assert whole.returncode == 0, whole.stdout + whole.stderr

    words = command(tmp_path, "disturbed", tasks=",".join(TASKS), epochs=5)
    with start(tmp_path, words, two_nodes.environment) as job:
        wait_for_epochs(job, tmp_path / "disturbed", 1)
        assert wait_until(lambda: all(two_nodes.train_workers(node) for node in two_nodes.nodes), 60)
        lost = two_nodes.nodes[0]
        workers = two_nodes.train_workers(lost)
        two_nodes.kill_node(lost)
        printed, told = job.communicate(timeout=300)
    assert not any(worker.is_running() for worker in workers)
    assert job.returncode == 0, printed + told
    assert printed.count("again from the last report") == 1
    for task in TASKS:
        assert_equal(tensors(tmp_path / "disturbed", task), tensors(tmp_path / "whole", task))
