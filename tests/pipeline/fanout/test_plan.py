"""What is printed before anything starts, and what is refused then."""

import dataclasses
from typing import Any

import pytest

from pipeline.cluster.ray_cluster import WorkerError
from pipeline.cluster.resources import Plan
from pipeline.console.command_line import FaultyOptions
from pipeline.fanout import plan as fanout_plan
from pipeline.fanout.calibration import SECONDS_AROUND, Rate, pack_bytes, run_seconds, worker_bytes
from pipeline.fanout.memory import fitting_pack, memory_faults, with_memory
from pipeline.fanout.options import AUTO_PACK, FanoutOptions
from pipeline.fanout.plan import Node, estimate, plan_fanout, plan_lines, total_seconds
from pipeline.search.plan import SearchOptions, SearchPlan
from tests.pipeline.fanout.test_calibration import PLAN, RATE, job

GB = 1e9
HEAVY = Rate(train_seconds=0.5, eval_seconds=0.25, base_bytes=10**9, image_bytes=10**8)


def test_tasks_take_the_next_free_place() -> None:
    assert total_seconds([5, 1, 1, 1, 4], 2) == 7
    assert total_seconds([5, 1, 1], 1) == 7
    assert total_seconds([5], 4) == 5


def test_what_no_node_has_is_refused_with_what_to_change() -> None:
    needed = (10**9 + 32 * 10**8) / GB  # 4.2, plus a megabyte of decoded images
    assert memory_faults([job()], [HEAVY], PLAN, [{"CPU": 2, "memory": 2 * GB}, {"CPU": 2, "memory": 5 * GB}]) == []
    assert memory_faults([job()], [HEAVY], PLAN, [{"CPU": 2, "memory": 3 * GB, "object_store_memory": 2 * GB}]) == []
    assert memory_faults([job()], [HEAVY], PLAN, [{"CPU": 2}]) == [], "a node that does not say"
    (fault,) = memory_faults([job()], [HEAVY], PLAN, [{"CPU": 2, "memory": 4 * GB}])
    assert fault == (
        f"demo-digits: a worker needs about {needed:.1f} GB for 32 images of 64 pixels, and the largest node has "
        "4.0 GB; use a smaller batch_size or image_size, more accumulation_steps, more --num-workers"
    )


def test_a_step_keeps_as_much_as_fits() -> None:
    rate = dataclasses.replace(HEAVY, kept={"speed": 1.0, "balanced": 0.75, "memory": 0.5})
    needed = {mode: 10**9 + 32 * 10**8 * part for mode, part in rate.kept.items()}

    def chosen(room: float, **recipe: Any) -> str:
        (one,) = with_memory([job(**recipe)], [rate], PLAN, [{"CPU": 2, "memory": room}])
        return one.memory

    decoded = 10**7
    assert [chosen(size + decoded) for size in needed.values()] == ["speed", "balanced", "memory"]
    assert chosen(needed["memory"] / 2) == "memory", "which is then refused"
    assert memory_faults(with_memory([job()], [rate], PLAN, nodes := [{"CPU": 2, "memory": 1e9}]), [rate], PLAN, nodes)
    assert chosen(needed["memory"] + decoded, memory="speed") == "speed", "as it was asked for"


def test_what_a_part_of_a_gpu_has_not_is_refused() -> None:
    rate = Rate(**{**vars(HEAVY), "device_bytes": 16 * 10**9})
    quarter = Plan(num_workers=1, concurrent=4, cpus_per_worker=1, gpus_per_worker=0.25)
    (fault,) = memory_faults([job()], [rate], quarter, [{"CPU": 8, "GPU": 1, "memory": 1 * GB}])
    assert "its part of a GPU has 4.0 GB; use" in fault
    assert fault.endswith(", a smaller --max-concurrent")
    half = Plan(num_workers=1, concurrent=2, cpus_per_worker=1, gpus_per_worker=0.5)
    assert memory_faults([job()], [rate], half, [{"CPU": 8, "GPU": 1}]) == []


def test_tasks_that_share_a_gpu_share_its_time() -> None:
    half = Plan(num_workers=1, concurrent=2, cpus_per_worker=1, gpus_per_worker=0.5)
    alone = estimate(job(), RATE, PLAN).final_seconds
    assert alone is not None
    assert estimate(job(), RATE, half).final_seconds == 2 * alone


def test_the_lines_for_people() -> None:
    two = Plan(num_workers=1, concurrent=2, cpus_per_worker=1, gpus_per_worker=0)
    estimates = [estimate(job(), HEAVY, two), estimate(job(select=False), HEAVY, two), estimate(job(), HEAVY, two)]
    assert estimates[1].selection_seconds is None
    total = 370 + 490 + 490 + 2 * SECONDS_AROUND
    assert total_seconds([one.seconds for one in estimates], 2) == total
    assert plan_lines(estimates, two, [{"CPU": 2, "memory": 15 * GB}]) == [
        "task         images  epochs   selection       final  memory a worker",
        "demo-digits     100      10  6 min 10 s  8 min 10 s           4.2 GB",
        "demo-digits     100      10           -  8 min 10 s           4.2 GB",
        "demo-digits     100      10  6 min 10 s  8 min 10 s           4.2 GB",
        "about 23 min 10 s in all, 2 tasks at once, of 15.0 GB that a node gives to workers",
    ]


def test_a_search_takes_its_trials_at_most_and_seeds_their_trainings() -> None:
    options = SearchOptions(trials=3, epochs=5)
    searched = dataclasses.replace(job(), search=SearchPlan(options=options, space={}), num_seeds=2)
    found, plain = estimate(searched, HEAVY, PLAN), estimate(job(), HEAVY, PLAN)
    assert plain.search_seconds is None
    shorter = dataclasses.replace(job(), recipe=dataclasses.replace(job().recipe, epochs=5))
    assert found.search_seconds == 3 * run_seconds(shorter, "selection", HEAVY, 1)
    assert (found.selection_seconds, found.final_seconds) == (2 * 370, 2 * 490)
    assert plan_lines([found], PLAN, [])[:2] == [
        "task         images  epochs  search, about    selection        final  memory a worker",
        "demo-digits     100      10     9 min 15 s  12 min 20 s  16 min 20 s           4.2 GB",
    ]
    alone = estimate(searched, HEAVY, PLAN, search_only=True)
    assert (alone.images, alone.selection_seconds, alone.final_seconds) == (80, None, None)


MARGIN = 1.25
PACK = Plan(num_workers=1, concurrent=3, pack=3, cpus_per_worker=2, gpus_per_worker=0)


def test_a_pack_has_one_vit_and_both_runs_of_each_task_at_a_time() -> None:
    decoded = worker_bytes(job(), HEAVY, PLAN) - (10**9 + 32 * 10**8)
    jobs = [job(), job(batch_size=16), job(batch_size=8), job(select=False)]
    both, half, quarter, one = 64 * 10**8, 32 * 10**8, 16 * 10**8, 32 * 10**8
    assert pack_bytes(jobs, [HEAVY] * 4, PACK) == 10**9 + MARGIN * (both + half + one + 3 * decoded), "the three"
    assert pack_bytes(jobs[2:3], [HEAVY], PACK) == 10**9 + MARGIN * (quarter + decoded)
    assert pack_bytes(jobs[:1], [HEAVY], PLAN) == worker_bytes(jobs[0], HEAVY, PLAN)


def test_on_a_gpu_a_pack_has_its_side_networks_stacked_in_the_fastest_mode_alone() -> None:
    rate = dataclasses.replace(HEAVY, kept={"speed": 1.0, "balanced": 0.75}, stacked=1.25)
    on_gpu = dataclasses.replace(PACK, gpus_per_worker=1)
    assert pack_bytes([job()], [rate], on_gpu) == 10**9 + MARGIN * 1.25 * 64 * 10**8
    balanced = dataclasses.replace(job(), fitting_memory="balanced")
    assert pack_bytes([balanced], [rate], on_gpu) == 10**9 + MARGIN * 0.75 * 64 * 10**8
    alone = dataclasses.replace(on_gpu, pack=1)
    assert pack_bytes([job()], [rate], alone) == 10**9 + 32 * 10**8


def test_as_many_tasks_are_packed_as_fit_and_what_is_asked_for_and_does_not_keeps_less() -> None:
    rate = dataclasses.replace(HEAVY, kept={"speed": 1.0, "balanced": 0.75, "memory": 0.5})
    jobs, rates = [job()] * 3, [rate] * 3

    def node(gigabytes: float) -> list[Node]:
        return [{"CPU": 2, "memory": gigabytes * GB}]

    assert [fitting_pack(jobs, rates, PACK, node(size)) for size in (25.2, 17.2, 7.5, 1)] == [3, 2, 1, 1]
    assert {one.memory for one in with_memory(jobs, rates, PACK, node(25.2))} == {"speed"}
    assert {one.memory for one in with_memory(jobs, rates, PACK, node(13.1))} == {"memory"}
    assert memory_faults(with_memory(jobs, rates, PACK, node(13.1)), rates, PACK, node(13.1)) == []
    (fault,) = memory_faults(with_memory(jobs, rates, PACK, node(11)), rates, PACK, node(11))
    assert fault.startswith(
        "--pack 3: this many tasks need about 13.0 GB together, and a worker has 11.0 GB; use a small"
    )


def test_a_pack_leaves_room_on_a_gpu_for_what_is_recorded() -> None:
    on_gpu = dataclasses.replace(PACK, gpus_per_worker=1)
    two = pack_bytes([job()] * 2, [HEAVY] * 2, dataclasses.replace(on_gpu, pack=2))
    for room, fits in ((two, 1), (2 * two, 2)):
        rate = dataclasses.replace(HEAVY, device_bytes=int(room))
        assert fitting_pack([job()] * 3, [rate] * 3, on_gpu, []) == fits


def planned(
    monkeypatch: pytest.MonkeyPatch,
    rates: Any,
    *,
    node: Node,
    done: tuple[str, ...] = (),
    tasks: int = 1,
    pack: int = 1,
) -> tuple[Plan, list[str]]:
    told: list[str] = []
    backbone: Any = type("Vit", (), {"name": "vit", "identity": "0" * 64})
    monkeypatch.setattr(fanout_plan, "living_nodes", lambda: [node])
    monkeypatch.setattr(fanout_plan, "rates_of", rates)
    plan, _, _ = plan_fanout(FanoutOptions(pack=pack), [job()] * tasks, backbone, None, done=done, say=told.append)
    return plan, told


def heavy(jobs: list[Any], plan: Plan, **_: Any) -> tuple[list[Rate], str]:
    return [HEAVY] * len(jobs), f"{plan.cpus_per_worker} cores"


def test_measured_memory_limits_how_many_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"CPU": 16.0, "memory": 16 * GB}
    plan, told = planned(monkeypatch, heavy, node=node, tasks=8)
    assert plan.concurrent == 3  # 4.2 GB plus 0.9 GB of helpers
    assert plan.cpus_per_worker == 5
    assert told[0] == "8 tasks on vit (000000000000): 3 tasks at once, each 1 worker of 5 CPUs and no GPU"
    assert "on 5 cores;" in told[-1], "measured with the threads that it has then"


def test_where_all_is_done_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured")

    _, told = planned(monkeypatch, never, node={"CPU": 2.0}, done=("demo-digits",))
    assert told == ["1 task on vit (000000000000): 1 task at once, each 1 worker of 2 CPUs and no GPU"]


def test_where_nothing_could_be_measured_that_is_told_and_the_tasks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise WorkerError("no worker of 2 CPUs and 0 GPUs was back within 120 s")

    plan, told = planned(monkeypatch, fail, node={"CPU": 2.0})
    assert plan.concurrent == 1
    assert told[1] == "time and memory are unknown: no worker of 2 CPUs and 0 GPUs was back within 120 s"


def test_what_can_never_run_is_refused_as_a_fault_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FaultyOptions, match=r"demo-digits: a worker needs about 4.2 GB .* the largest node has 2.0 GB"):
        planned(monkeypatch, heavy, node={"CPU": 2.0, "memory": 2 * GB})
    with pytest.raises(FaultyOptions, match="--num-workers 1: each needs a CPU"):
        planned(monkeypatch, heavy, node={"memory": 2 * GB})


def test_packs_are_told_with_what_they_take_together(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"CPU": 4.0, "memory": 18 * GB}
    plan, told = planned(monkeypatch, heavy, node=node, tasks=4, pack=AUTO_PACK)
    assert (plan.pack, plan.packs, plan.concurrent, plan.cpus_per_worker) == (2, 1, 2, 4)
    assert "2 tasks at once, in 1 pack of at most 2, each 1 worker of 4 CPUs" in told[0]
    assert "a pack of the largest 2 takes about 17.0 GB" in told
    plan, _ = planned(monkeypatch, heavy, node=node, tasks=4, pack=1)
    assert plan.pack == 1
