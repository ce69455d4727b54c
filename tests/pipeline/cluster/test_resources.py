import pytest

from pipeline.cluster.resources import (
    NumWorkers,
    Plan,
    num_workers_fault,
    parse_num_workers,
    plan_resources,
    plan_trials,
    widest_pack,
    worker_bounds,
    workers_text,
)

GIB = float(1 << 30)


def plan(
    nodes: list[dict[str, float]], tasks: int = 19, workers: NumWorkers = 1, concurrent: int | None = None
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
    assert 3 * fraction <= 1  # three fit on each GPU


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


@pytest.mark.parametrize(("text", "meant"), [("2", 2), ("1-4", (1, 4)), (" 3-3 ", 3)])
def test_a_number_or_a_range_of_workers_is_read(text: str, meant: NumWorkers) -> None:
    assert parse_num_workers(text) == meant
    assert parse_num_workers(workers_text(meant)) == meant
    assert worker_bounds(meant) == (meant if isinstance(meant, tuple) else (meant, meant))
    assert num_workers_fault(meant) is None


@pytest.mark.parametrize("text", ["", "two", "1-", "-4", "1-4-6", "1.5", "²"])
def test_what_is_neither_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number of workers, as in 2, or a range, as in 1-4"):
        parse_num_workers(text)


def test_a_range_begins_at_one_and_with_the_smaller_number() -> None:
    assert num_workers_fault((0, 2)) == "--num-workers 0-2: expected at least 1"
    assert num_workers_fault((4, 1)) == "--num-workers 4-1: expected the smaller number first, as in 1-4"


def test_of_a_range_as_many_workers_are_planned_for_as_there_is_room() -> None:
    two, eight = {"CPU": 2, "memory": 64 * GIB}, {"CPU": 8, "memory": 64 * GIB}
    found = plan_resources([two], num_tasks=3, num_workers=(1, 4), max_concurrent=None)
    assert (found.num_workers, found.concurrent, found.asked_workers) == (2, 1, (1, 4))
    assert str(found) == "1 task at once, each 2 workers of 1 CPU and no GPU (1-4 as nodes come and go)"
    found = plan_resources([eight], num_tasks=3, num_workers=(1, 4), max_concurrent=None)
    assert (found.num_workers, found.concurrent, found.cpus_per_worker) == (4, 2, 1)
    with pytest.raises(ValueError, match="--num-workers 3-4: each needs a CPU, and the cluster's nodes have 2"):
        plan_resources([two], num_tasks=1, num_workers=(3, 4), max_concurrent=None)


def test_a_worker_of_a_range_fits_on_the_smallest_node_that_may_be_left() -> None:
    nodes = [{"CPU": 16.0}, {"CPU": 2.0}, {"CPU": 0.0}]
    assert plan(nodes, tasks=1, workers=2)[1] == 8
    assert plan(nodes, tasks=1, workers=(1, 2))[1] == 2


def test_a_range_has_whole_gpus() -> None:
    node = {"CPU": 16.0, "GPU": 2.0}
    found = plan_resources([node], num_tasks=4, num_workers=(1, 8), max_concurrent=None)
    assert (found.num_workers, found.concurrent, found.gpus_per_worker) == (2, 1, 1)
    with pytest.raises(
        ValueError, match=r"4 workers at once on 2 GPUs would have 0.5 GPU each.*use --max-concurrent 1,"
    ):
        plan_resources([node], num_tasks=4, num_workers=(1, 8), max_concurrent=2)
    with pytest.raises(ValueError, match="use a range from at most 2, or a fixed number"):
        plan_resources([node], num_tasks=1, num_workers=(3, 8), max_concurrent=None)


@pytest.mark.parametrize(
    ("plan", "at_once", "room"),
    [
        ((1, 1, 4, 0.0), None, (4, 1, 0.0)),
        ((1, 1, 4, 0.0), 2, (2, 2, 0.0)),
        ((2, 1, 3, 0.0), 3, (3, 1, 0.0)),
        ((2, 1, 4, 1.0), None, (2, 4, 1.0)),
        ((1, 1, 8, 1.0), 4, (4, 2, 0.25)),
        ((1, 2, 4, 0.5), 2, (2, 2, 0.25)),
    ],
)
def test_trials_divide_what_their_tasks_training_has(
    plan: tuple[int, int, int, float], at_once: int | None, room: tuple[int, int, float]
) -> None:
    workers, concurrent, cpus, gpus = plan
    made = Plan(num_workers=workers, concurrent=concurrent, cpus_per_worker=cpus, gpus_per_worker=gpus)
    found = plan_trials([{"CPU": 64}], made, at_once)
    assert (found.at_once, found.cpus, found.gpus) == room


def test_more_trials_at_once_than_cpus_or_memory_hold_are_refused() -> None:
    half = Plan(num_workers=1, concurrent=2, cpus_per_worker=4, gpus_per_worker=0)
    node = {"CPU": 8, "memory": 12e9}
    assert plan_trials([node], half, None, 2e9).at_once == 3
    with pytest.raises(ValueError, match="--trials-at-once 5: each trial needs a CPU, and a task's share is 4"):
        plan_trials([node], half, 5)
    with pytest.raises(ValueError, match=r"--trials-at-once 4: each takes about 2.0 GB; a task's share holds 3"):
        plan_trials([node], half, 4, 2e9)


def packed(nodes: list[dict[str, float]], pack: int, tasks: int = 19, concurrent: int | None = None) -> Plan:
    return plan_resources(nodes, num_tasks=tasks, num_workers=1, max_concurrent=concurrent, pack=pack)


def test_packs_are_placed_as_single_tasks_are() -> None:
    node = {"CPU": 16.0, "GPU": 2.0, "memory": 100 * GIB}
    found = packed([node], 10)
    assert (found.packs, found.concurrent, found.cpus_per_worker, found.gpus_per_worker) == (2, 19, 8, 1)
    assert str(found) == "19 tasks at once, in 2 packs of at most 10, each 1 worker of 8 CPUs and 1 GPU"
    fewer = packed([node], 4)
    assert (fewer.packs, fewer.concurrent) == (2, 8)
    assert packed([node], 4, concurrent=4).packs == 1
    assert packed([node], 8, concurrent=2).concurrent == 2
    assert (few := packed([node], 8, concurrent=19)).packs == 2, "each on a GPU of its own"
    assert few.gpus_per_worker == 1
    on_cpus = packed([{"CPU": 2, "memory": 16 * GIB}], 3, tasks=3)
    assert (on_cpus.packs, on_cpus.concurrent, on_cpus.cpus_per_worker) == (1, 3, 2)


def test_the_widest_packs_are_one_for_every_device() -> None:
    two, none = {"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}
    assert widest_pack([two, none], 19, None) == 10
    assert widest_pack([none, none, {"CPU": 0.0}], 19, None) == 10
    assert widest_pack([two], 19, 6) == 3
    assert widest_pack([two], 1, None) == 1


def test_the_trials_of_tasks_in_a_pack_divide_its_worker() -> None:
    node = {"CPU": 16.0, "GPU": 2.0, "memory": 100 * GIB}
    room = plan_trials([node], packed([node], 4, tasks=8), None)
    assert (room.at_once, room.cpus, room.gpus) == (1, 2, 0.25)
    node = {"CPU": 2.0, "memory": 100 * GIB}
    assert plan_trials([node], packed([node], 3, tasks=3), None).cpus == 1
