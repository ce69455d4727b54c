import pytest

from pipeline.resources import plan_resources

GIB = float(1 << 30)


def plan(
    nodes: list[dict[str, float]], tasks: int = 19, workers: int = 1, concurrent: int | None = None
) -> tuple[int, int, float]:
    found = plan_resources(nodes, num_tasks=tasks, num_workers=workers, max_concurrent=concurrent)
    return found.concurrent, found.cpus_per_worker, found.gpus_per_worker


def test_on_cpus_every_worker_has_its_own() -> None:
    assert plan([{"CPU": 2, "memory": 16 * GIB}]) == (2, 1, 0)
    assert plan([{"CPU": 16, "memory": 64 * GIB}], tasks=3) == (3, 5, 0)
    assert plan([{"CPU": 16, "memory": 64 * GIB}], tasks=3, workers=2) == (3, 2, 0)
    assert plan([{"CPU": 4, "memory": 64 * GIB}], tasks=1) == (1, 4, 0)


def test_memory_limits_how_many_run_on_cpus_at_once() -> None:
    assert plan([{"CPU": 64, "memory": 16 * GIB}])[0] == 6


def test_gpus_are_divided_into_equal_fractions() -> None:
    node = {"CPU": 16.0, "GPU": 2.0, "memory": 100 * GIB}
    assert plan([node]) == (2, 8, 1)
    assert plan([node], concurrent=8) == (8, 2, 0.25)
    concurrent, _, fraction = plan([node], concurrent=6)
    assert (concurrent, fraction) == (6, 0.3333)
    assert 3 * fraction <= 1  # three fit on each card


def test_max_concurrent_is_kept_within_the_cpus() -> None:
    assert plan([{"CPU": 4, "memory": 64 * GIB}], concurrent=19) == (4, 1, 0)


def test_a_worker_never_needs_more_than_a_node_has() -> None:
    assert plan([{"CPU": 3, "memory": 64 * GIB}, {"CPU": 3, "memory": 64 * GIB}], tasks=4) == (4, 1, 0)


def test_where_there_are_gpus_only_their_nodes_train() -> None:
    nodes = [{"CPU": 64.0, "memory": 64 * GIB}, {"CPU": 8.0, "GPU": 4.0, "memory": 64 * GIB}]
    assert plan(nodes) == (4, 2, 1)
    assert plan(nodes, concurrent=16) == (8, 1, 0.5)


def test_little_memory_means_one_task_and_not_all() -> None:
    assert plan([{"CPU": 16, "memory": 2.4e9}])[0] == 1


def test_what_cannot_be_placed_is_refused() -> None:
    with pytest.raises(ValueError, match="--num-workers 8: each needs a CPU, and the cluster's nodes have 2"):
        plan([{"CPU": 2}], workers=8)
    with pytest.raises(ValueError, match="the cluster's nodes with GPUs have 1"):
        plan([{"CPU": 64}, {"CPU": 1, "GPU": 4}], workers=2)


def test_a_plan_reads_right_for_one_and_for_many() -> None:
    node = {"CPU": 4, "memory": 64 * GIB}
    one = plan_resources([node], num_tasks=1, num_workers=1, max_concurrent=None)
    assert str(one) == "1 task at once, each 1 worker of 4 CPUs and no GPU"
    many = plan_resources([node], num_tasks=2, num_workers=2, max_concurrent=None)
    assert str(many) == "2 tasks at once, each 2 workers of 1 CPU and no GPU"
