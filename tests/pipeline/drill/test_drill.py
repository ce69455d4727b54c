"""The drill's judgement, without a cluster: which kills it draws, what counts as recovered and what as equal."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.drill import report as reports
from pipeline.drill.drill import Kill, Outcome, Plan, draw_kills, plan_drill
from pipeline.drill.kinds import KINDS, Scene, Strike
from pipeline.drill.observed import Observer
from pipeline.drill.report import report_of, table
from pipeline.drill.results import read_result
from pipeline.tasks.kinds import TOP1, Measure

FINGERPRINT = "0123456789abcdef"


def plan(seed: int = 0, kills: int = 22) -> Plan:
    return Plan(seed=seed, tasks=6, epochs=18, kills=kills)


def test_ten_minutes_have_twenty_kills_of_all_kinds_drawn_by_the_seed() -> None:
    assert plan_drill(minutes=10, seed=0, tasks=6, kills=None).kills >= 20
    drawn = draw_kills(plan())
    assert drawn == draw_kills(plan()) != draw_kills(plan(seed=1))
    shares = [share for share, _ in drawn]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < 0.1 < 0.8 < shares[-1] < 0.9
    counts = Counter(kind for _, kind in drawn)
    assert set(counts) == set(KINDS)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_every_faulty_number_is_told_in_one_line() -> None:
    with pytest.raises(ValueError) as told:
        plan_drill(minutes=0, seed=-1, tasks=7, kills=0)
    text = str(told.value)
    assert "\n" not in text
    assert all(word in text for word in ("--minutes 0", "--seed -1", "--tasks 7", "--kills 0"))


def write_result(
    root: Path, task: str, *, bit: int = 0, val: float = 0.5, rate: float = 90.0, trial: float = 0.5
) -> None:
    folder = root / "workflows" / task
    folder.mkdir(parents=True)
    runs: dict[str, Any] = {}
    for kind, metrics in (("selection", {"val/top1": val}), ("final", {"test/top1": 0.25})):
        values = np.arange(4, dtype=np.int32)
        values[0] ^= bit
        name = f"train-{FINGERPRINT}-1-{kind}.safetensors"
        save_file({"a": values}, folder / name)
        history = [{"epoch": 1, "train/loss": 0.75, "images_per_second": rate}]
        runs[kind] = {"history": history, "results": {"metrics": metrics}, "tensors": name, "code_version": "0"}
    (folder / f"train-{FINGERPRINT}.json").write_text(json.dumps({"result": runs}))
    searched = {"outcomes": [{"value": trial}], "trials": [{"device_seconds": rate}]}
    (folder / f"search-{FINGERPRINT}.json").write_text(json.dumps({"result": searched}))


@pytest.mark.parametrize("change", [{"bit": 1}, {"val": 0.5000001}, {"trial": 0.51}], ids=["a bit", "val", "a trial"])
def test_results_that_differ_by_the_least_are_not_equal(change: dict[str, Any], tmp_path: Path) -> None:
    write_result(tmp_path / "a", "drill-digits")
    write_result(tmp_path / "b", "drill-digits", rate=45.0)
    write_result(tmp_path / "c", "drill-digits", **change)
    a, b, c = (read_result(tmp_path / name, "drill-digits", TOP1) for name in "abc")
    assert a == b, "how fast it was is no result"
    assert a != c


def test_results_are_read_by_the_measure_of_the_task(tmp_path: Path) -> None:
    write_result(tmp_path, "drill-digits")
    (record,) = (tmp_path / "workflows" / "drill-digits").glob("train-*.json")
    record.write_text(record.read_text().replace("top1", "mae"))
    found = read_result(tmp_path, "drill-digits", Measure(name="mae", unit="px", higher_is_better=False))
    assert (found.val, found.test) == (0.5, 0.25)


def outcome(root: Path, *, status: int | None = 0, recovered_s: float | None = 3.5) -> Outcome:
    kill = Kill(kind="node", what="node with 1 train worker", at_s=2.0, recovered_s=recovered_s, seen="epochs")
    return Outcome(
        tasks=["drill-digits"],
        whole=root / "whole",
        killed=root / "killed",
        tracking_uri="http://127.0.0.1:1",
        whole_s=10.0,
        killed_s=20.0,
        status=status,
        kills=[] if recovered_s == 0 else [kill],
    )


@pytest.mark.parametrize(
    ("case", "passed"),
    [
        ({}, True),
        ({"bit": 1}, False),
        ({"versions": 2}, False),
        ({"status": 1}, False),
        ({"recovered_s": None}, False),
        ({"recovered_s": 0}, False),
        ({"missing": True}, False),
    ],
    ids=["equal", "a bit", "two versions", "the driver failed", "not recovered", "nothing killed", "no result"],
)
def test_a_drill_has_passed_only_if_all_recovered_and_all_is_equal(
    case: dict[str, Any], passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"drill-digits": [object()] * case.pop("versions", 1)}
    monkeypatch.setattr(reports, "list_tasks", lambda uri, prefix: versions)
    write_result(tmp_path / "whole", "drill-digits")
    bit = case.pop("bit", 0)
    if not case.pop("missing", False):
        write_result(tmp_path / "killed", "drill-digits", bit=bit)
    report = json.loads(json.dumps({"kills": 1, **report_of(outcome(tmp_path, **case))}))
    assert report["passed"] == passed
    assert set(report["versions"]) == {"python", "torch", "ray", "mlflow"}
    assert table(report).splitlines()[-1].startswith("passed: 1 of 1 kills" if passed else "FAILED: ")


def save_checkpoint(storage: Path, start: str, epochs: int) -> None:
    folder = storage / "train" / start / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "complete.json").write_text(json.dumps({"progress": [2 * epochs, 0], "runs": 2}))


def test_a_worker_is_recovered_from_once_every_task_under_way_has_saved_more(tmp_path: Path) -> None:
    tasks = ["drill-digits", "drill-digits-2"]
    observer = Observer(tmp_path, tasks, epochs=10, trials=2, trial_epochs=4)
    scene: Scene = SimpleNamespace(observer=observer)  # type: ignore[assignment]
    save_checkpoint(tmp_path, f"drill-digits-{FINGERPRINT}/0001-0", epochs=3)
    assert {task: one.epochs for task, one in observer.progress().items()} == {tasks[0]: 3.0, tasks[1]: 0.0}
    assert observer.share_done() == pytest.approx(3 / (2 * (10 + 4)))
    recovered = KINDS["worker"].recovered
    (tmp_path / "train" / f"drill-digits-2-{FINGERPRINT}/0001-0").mkdir(parents=True)
    strike = Strike(what="", before=observer.progress())
    assert recovered(scene, strike) is None
    save_checkpoint(tmp_path, f"drill-digits-2-{FINGERPRINT}/0001-1", epochs=1)
    assert recovered(scene, strike) is None, "the other one may be the victim"
    (tmp_path / "train" / f"drill-digits-{FINGERPRINT}/0001-1").mkdir()
    assert recovered(scene, strike) is None, "it was started, but nothing is saved yet"
    save_checkpoint(tmp_path, f"drill-digits-{FINGERPRINT}/0001-2", epochs=4)
    assert recovered(scene, strike) == "drill-digits, drill-digits-2: went on"


def test_a_trial_is_recovered_from_once_every_search_under_way_has_ended_another_or_is_over(tmp_path: Path) -> None:
    tasks = ["drill-digits", "drill-digits-2", "drill-shape_x"]
    observer = Observer(tmp_path, tasks, epochs=10, trials=3, trial_epochs=4)
    scene: Scene = SimpleNamespace(observer=observer)  # type: ignore[assignment]
    fanout = tmp_path / "fanouts" / "key"
    fanout.mkdir(parents=True)
    for task, stage in zip(tasks, ("search", "search", "training"), strict=True):
        (tmp_path / "workflows" / task).mkdir(parents=True)
        (fanout / f"{task}.json").write_text(json.dumps({"stage": stage}))
    one, two, _ = (tmp_path / "workflows" / task for task in tasks)
    (one / "trial-1.json").write_text("{}")
    strike = Strike(what="", before=observer.progress())
    recovered = KINDS["trial"].recovered
    assert recovered(scene, strike) is None
    (one / "trial-2.json").write_text("{}")
    assert recovered(scene, strike) is None, "the other search's trial may be the victim"
    assert observer.share_done() == pytest.approx(2 * 2 / (3 * (10 + 3 * 2)))
    (two / "search-1.json").write_text("{}")
    assert recovered(scene, strike) == "drill-digits, drill-digits-2: searched on"
    assert observer.share_done() == pytest.approx((2 + 3) * 2 / (3 * (10 + 3 * 2)))


def test_a_driver_is_recovered_from_once_all_that_it_had_under_way_has_got_on(tmp_path: Path) -> None:
    tasks = ["drill-digits", "drill-digits-2", "drill-shape_x"]
    observer = Observer(tmp_path, tasks, epochs=10, trials=3, trial_epochs=4)
    scene: Scene = SimpleNamespace(observer=observer)  # type: ignore[assignment]
    fanout = tmp_path / "fanouts" / "key"
    fanout.mkdir(parents=True)
    (fanout / "drill-digits.json").write_text(json.dumps({"stage": "search"}))
    (fanout / "drill-digits-2.json").write_text(json.dumps({"stage": "training"}))
    save_checkpoint(tmp_path, f"drill-digits-2-{FINGERPRINT}/0001-0", epochs=3)
    recovered, strike = KINDS["driver"].recovered, Strike(what="", before=observer.progress())
    save_checkpoint(tmp_path, f"drill-digits-2-{FINGERPRINT}/0002-0", epochs=4)
    assert recovered(scene, strike) is None, "the search has not got on"
    (tmp_path / "workflows" / "drill-digits").mkdir(parents=True)
    (tmp_path / "workflows" / "drill-digits" / "trial-1.json").write_text("{}")
    assert recovered(scene, strike) == "drill-digits-2: went on; drill-digits: searched on"


def test_a_driver_that_had_nothing_under_way_is_recovered_from_once_a_task_is_registered(tmp_path: Path) -> None:
    observer = Observer(tmp_path, ["drill-digits"], epochs=10, trials=3, trial_epochs=4)
    scene: Scene = SimpleNamespace(observer=observer)  # type: ignore[assignment]
    file = tmp_path / "fanouts" / "key" / "drill-digits.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"stage": "registering"}))
    recovered, strike = KINDS["driver"].recovered, Strike(what="", before=observer.progress())
    assert recovered(scene, strike) is None
    file.write_text(json.dumps({"stage": "done"}))
    assert recovered(scene, strike) == "drill-digits: registered"


def test_a_trial_is_killed_only_where_a_search_is_under_way(tmp_path: Path) -> None:
    observer = Observer(tmp_path, ["drill-digits"], epochs=10, trials=3, trial_epochs=4)
    killed: list[int] = []
    process = SimpleNamespace(pid=7, kill=lambda: killed.append(7))
    scene: Scene = SimpleNamespace(  # type: ignore[assignment]
        observer=observer, cluster=SimpleNamespace(trials=lambda: [process])
    )
    # No search is under way: an idle process that a search left behind would show nothing when killed.
    assert KINDS["trial"].strike(scene, random.Random(0)) is None
    (tmp_path / "fanouts/key").mkdir(parents=True)
    (tmp_path / "fanouts/key/drill-digits.json").write_text(json.dumps({"stage": "search"}))
    strike = KINDS["trial"].strike(scene, random.Random(0))
    assert strike is not None
    assert strike.before["drill-digits"].searching
    assert killed == [7]


def test_what_trains_is_killed_only_while_a_task_is_in_training(tmp_path: Path) -> None:
    observer = Observer(tmp_path, ["drill-digits"], epochs=10, trials=3, trial_epochs=4)
    killed: list[str] = []
    process = SimpleNamespace(pid=7, kill=lambda: killed.append("worker"))
    cluster = SimpleNamespace(
        nodes=["one", "two"],
        train_workers=lambda node=None: [process],
        kill_node=lambda node: killed.append("node"),
        add_node=lambda: None,
    )
    scene: Scene = SimpleNamespace(observer=observer, cluster=cluster)  # type: ignore[assignment]
    for kind in ("worker", "node"):
        assert KINDS[kind].strike(scene, random.Random(0)) is None
    save_checkpoint(tmp_path, f"drill-digits-{FINGERPRINT}/0001-0", epochs=3)
    for kind in ("worker", "node"):
        assert KINDS[kind].strike(scene, random.Random(0)) is not None
    assert killed == ["worker", "node"]


def test_mlflow_is_recovered_from_once_it_takes_records_again(tmp_path: Path) -> None:
    ledger = tmp_path / "ledgers/key/ledger.jsonl"
    ledger.parent.mkdir(parents=True)
    ledger.write_text('{"n":0,"kind":"open"}\n{"delivered":[0],"run":"r"}\n')
    observer = Observer(tmp_path, ["drill-digits"], epochs=10, trials=2, trial_epochs=4)
    scene: Scene = SimpleNamespace(observer=observer)  # type: ignore[assignment]
    strike = Strike(what="", before={}, delivered=observer.delivered())
    assert strike.delivered == 1
    assert KINDS["mlflow"].recovered(scene, strike) is None
    with ledger.open("a") as file:
        file.write('{"n":1,"kind":"metrics"}\n')
    assert KINDS["mlflow"].recovered(scene, strike) is None
    with ledger.open("a") as file:
        file.write('{"delivered":[1],"run":"r"}\n')
    assert KINDS["mlflow"].recovered(scene, strike) == "records delivered"
