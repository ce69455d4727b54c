"""The tracker: nothing lost, nothing doubled, whatever happens to MLflow or to the driver."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.ledger import Ledger, LedgerError
from pipeline.mlflow_client import MlflowAwayError, TrackingError, open_client
from pipeline.tracking import Tracker


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "mlflow.db"
    open_client(f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    return f"sqlite:///{tmp_path}/mlflow.db"


Open = Callable[..., Tracker]


@pytest.fixture
def tracker(uri: str, tmp_path: Path) -> Open:
    return lambda: Tracker(uri, "fan-out", tmp_path / "ledger", patience_seconds=20.0)


def runs_of(uri: str, experiment: str = "fan-out") -> list[Any]:
    client = open_client(uri)
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def opened(tracker: Tracker, key: str, **arguments: Any) -> str:
    """The id of a run that was just opened."""
    tracker.open_run(key, **arguments)
    return tracker.run_id(key)


def history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in open_client(uri).get_metric_history(run_id, metric)]


def away(*_arguments: Any, **_named: Any) -> None:
    raise ConnectionError("nobody there")


def write_one_of_each(tracker: Tracker, folder: Path) -> None:
    """A parent and a child with something of every kind."""
    tracker.open_run("fan", name="VTAB-1k", params={"seed": 0})
    tracker.open_run("fan/dtd", name="vtab-dtd", parent_key="fan", params={"lr": 1e-3}, tags={"subset": "yes"})
    for epoch in range(3):
        tracker.log_metrics("fan/dtd", epoch, {"train/loss": 1 / (epoch + 1), "val/top1": epoch / 10})
        tracker.log_metrics("fan/dtd", epoch, {"system/cpu_utilization_percentage": 50.0})
    (folder / "picture.png").write_bytes(b"a picture")
    tracker.log_artifact("fan/dtd", folder / "picture.png", "pictures")
    (folder / "picture.png").unlink()  # the caller's file need not outlive the call
    tracker.close_run("fan/dtd", "FINISHED")
    tracker.close_run("fan", "FAILED")


def assert_one_of_each(uri: str, parent: str, child: str, folder: Path) -> None:
    assert {run.info.run_id for run in runs_of(uri)} == {parent, child}
    run = open_client(uri).get_run(child)
    assert run.info.run_name == "vtab-dtd"
    assert run.info.status == "FINISHED"
    assert open_client(uri).get_run(parent).info.status == "FAILED"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["subset"] == "yes"
    assert run.data.params == {"lr": "0.001"}
    assert history(uri, child, "train/loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert history(uri, child, "val/top1") == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert len(history(uri, child, "system/cpu_utilization_percentage")) == 3
    folder.mkdir(exist_ok=True)
    fetched = open_client(uri).download_artifacts(child, "pictures/picture.png", str(folder))
    assert Path(fetched).read_bytes() == b"a picture"


def test_everything_arrives_on_sqlite(tracker: Open, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "job"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with tracker() as open_tracker:
        write_one_of_each(open_tracker, tmp_path)
        parent, child = open_tracker.run_id("fan"), open_tracker.run_id("fan/dtd")
    assert_one_of_each(uri, parent, child, tmp_path / "fetched")
    assert list(elsewhere.iterdir()) == [], "something was written relative to the current directory"
    assert list((tmp_path / "ledger" / "artifacts").iterdir()) == [], "copies of delivered artifacts were kept"


def test_everything_arrives_on_a_real_server(mlflow_server: str, tmp_path: Path) -> None:
    with Tracker(mlflow_server, "fan-out", tmp_path / "ledger") as open_tracker:
        write_one_of_each(open_tracker, tmp_path)
        parent, child = open_tracker.run_id("fan"), open_tracker.run_id("fan/dtd")
    assert_one_of_each(mlflow_server, parent, child, tmp_path / "fetched")


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back_loses_and_doubles_nothing(
    serve_mlflow: Callable[..., Any], unused_port: int, tmp_path: Path
) -> None:
    with serve_mlflow(tmp_path, unused_port) as address:
        tracker = Tracker(address, "fan-out", tmp_path / "ledger")
        first = opened(tracker, "first", name="first")
    for step in range(20):
        tracker.log_metrics("first", step, {"train/loss": float(step)})
    tracker.open_run("second", name="second", parent_key="first", params={"lr": 1})
    ids: list[str] = []
    asking = threading.Thread(target=lambda: ids.append(tracker.run_id("second")))
    asking.start()
    time.sleep(3)
    assert not ids
    with serve_mlflow(tmp_path, unused_port):
        asking.join(60)
        tracker.close()
        assert {run.info.run_id for run in runs_of(address)} == {first, *ids}
        assert open_client(address).get_run(ids[0]).data.tags["mlflow.parentRunId"] == first
        assert history(address, first, "train/loss") == [(step, float(step)) for step in range(20)]


def test_what_is_opened_while_mlflow_is_away_is_delivered_by_the_next_process(
    tracker: Open, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.get_experiment_by_name", away)
        first = tracker()
        write_one_of_each(first, tmp_path)
        first.abandon()
    with tracker() as second:
        second.flush()
        assert_one_of_each(uri, second.run_id("fan"), second.run_id("fan/dtd"), tmp_path / "fetched")
        write_one_of_each(second, tmp_path)
        second.flush()
        assert_one_of_each(uri, second.run_id("fan"), second.run_id("fan/dtd"), tmp_path / "fetched again")


def test_a_ledger_that_has_its_parents_resolved_is_delivered_too(tracker: Open, uri: str, tmp_path: Path) -> None:
    with tracker() as first:
        parent = opened(first, "fan", name="VTAB-1k")
    ledger = Ledger(tmp_path / "ledger")
    tags = {"hst.key": "fan/dtd", "mlflow.parentRunId": parent}
    number = sum("n" in entry for entry in ledger.entries())
    ledger.append({"n": number, "kind": "open", "key": "fan/dtd", "ms": 1, "name": "vtab-dtd", "tags": tags})
    ledger.close()
    with tracker() as second:
        assert open_client(uri).get_run(second.run_id("fan/dtd")).data.tags["mlflow.parentRunId"] == parent


def test_a_parent_that_was_refused_is_the_reason_why_its_child_is(
    tracker: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    create = MlflowClient.create_run

    def refuses_parents(self: Any, *arguments: Any, **named: Any) -> Any:
        if named["run_name"] == "parent":
            raise MlflowException("not that one", error_code=1000)
        return create(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "create_run", refuses_parents)
    open_tracker = tracker()
    open_tracker.open_run("fan", name="parent")
    open_tracker.open_run("fan/dtd", name="child", parent_key="fan")
    open_tracker.open_run("other", name="other")
    with pytest.raises(TrackingError, match=r"open of fan/dtd: .*its parent fan could not be opened"):
        open_tracker.run_id("fan/dtd")
    assert open_tracker.run_id("other")
    open_tracker.abandon()


def test_a_restart_finds_its_runs_and_repeats_nothing(tracker: Open, uri: str, tmp_path: Path) -> None:
    with tracker() as first:
        write_one_of_each(first, tmp_path)
        parent, child = first.run_id("fan"), first.run_id("fan/dtd")
    with tracker() as second:
        write_one_of_each(second, tmp_path)
        assert (second.run_id("fan"), second.run_id("fan/dtd")) == (parent, child)
        second.log_metrics("fan/dtd", 3, {"train/loss": 0.25})
    assert history(uri, child, "train/loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3), (3, 0.25)]
    assert len(runs_of(uri)) == 2


def test_a_run_that_was_closed_is_known_as_such_after_a_restart(tracker: Open) -> None:
    with tracker() as first:
        assert not first.is_closed("k")
        first.open_run("k", name="run")
        assert not first.is_closed("k")
        first.close_run("k")
        assert first.is_closed("k")
    with tracker() as again:
        assert again.is_closed("k")
        again.open_run("k", name="run")
        assert not again.is_closed("k")


def test_a_reopened_run_is_running_again(tracker: Open, uri: str) -> None:
    with tracker() as first:
        run_id = opened(first, "a", name="a")
        first.close_run("a", "KILLED")
    with tracker() as second:
        second.open_run("a", name="a")
        second.flush()
        assert open_client(uri).get_run(run_id).info.status == "RUNNING"


def test_a_lost_ledger_does_not_double_a_run(tracker: Open, uri: str, tmp_path: Path) -> None:
    with tracker() as first:
        run_id = opened(first, "a", name="a")
    (tmp_path / "ledger" / "ledger.jsonl").unlink()
    with tracker() as second:
        assert opened(second, "a", name="a") == run_id
    assert len(runs_of(uri)) == 1


def test_killed_between_creating_a_run_and_noting_it_gives_one_run(uri: str, tmp_path: Path) -> None:
    program = f"""
        import os
        from pipeline.tracking import Tracker
        tracker = Tracker({uri!r}, "fan-out", {str(tmp_path / "ledger")!r})
        tracker._delivery._delivered = lambda records, run_id: os.kill(os.getpid(), 9)
        tracker.open_run("a", name="a")
        tracker.flush()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -signal.SIGKILL
    (run,) = runs_of(uri)
    with Tracker(uri, "fan-out", tmp_path / "ledger") as tracker:
        assert opened(tracker, "a", name="a") == run.info.run_id
    assert len(runs_of(uri)) == 1


def test_what_a_killed_driver_left_is_delivered_once_by_the_next(uri: str, tmp_path: Path) -> None:
    program = f"""
        import os
        from pipeline.tracking import Tracker
        tracker = Tracker({uri!r}, "fan-out", {str(tmp_path / "ledger")!r})
        tracker.open_run("a", name="a")
        tracker.log_metrics("a", 0, {{"train/loss": 4.0}})
        tracker.flush()
        noted = tracker._delivery._delivered
        tracker._delivery._delivered = lambda records, run_id: os.kill(os.getpid(), 9)  # MLflow has it, the ledger not
        tracker.log_metrics("a", 1, {{"train/loss": 3.0}})
        tracker.log_metrics("a", 2, {{"train/loss": 2.0}})
        tracker.flush()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -signal.SIGKILL
    (run,) = runs_of(uri)
    Tracker(uri, "fan-out", tmp_path / "ledger").close()
    assert history(uri, run.info.run_id, "train/loss") == [(0, 4.0), (1, 3.0), (2, 2.0)]


def test_training_does_not_wait_while_mlflow_is_away(tracker: Open, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_tracker = tracker()
    run_id = opened(open_tracker, "a", name="a")
    open_tracker.flush()
    calls = []

    def counted_away(*_arguments: Any, **_named: Any) -> None:
        calls.append(1)
        away()

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_batch", counted_away)
        begin = time.monotonic()
        for step in range(50):
            open_tracker.log_metrics("a", step, {"train/loss": float(step)})
        assert time.monotonic() - begin < 5
        deadline = time.monotonic() + 10
        while len(calls) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert len(calls) >= 2, "it was not tried again"
    open_tracker.close()
    assert history(uri, run_id, "train/loss") == [(step, float(step)) for step in range(50)]


def test_a_lost_answer_of_create_run_does_not_double_the_run(
    tracker: Open, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    create = MlflowClient.create_run
    lost: list[Any] = []

    def loses_first_answer(self: Any, *arguments: Any, **named: Any) -> Any:
        run = create(self, *arguments, **named)
        if not lost:
            lost.append(run)
            raise ConnectionError("reset by peer")
        return run

    monkeypatch.setattr(MlflowClient, "create_run", loses_first_answer)
    with tracker() as open_tracker:
        assert opened(open_tracker, "a", name="a") == lost[0].info.run_id
    assert len(runs_of(uri)) == 1


def test_what_waits_for_an_mlflow_that_stays_away_is_named(tmp_path: Path) -> None:
    gone = Tracker("http://127.0.0.1:9", "fan-out", tmp_path / "ledger", patience_seconds=0.5)
    gone.open_run("a", name="a")
    silence = r"MLflow at http://127\.0\.0\.1:9 did not answer within 0\.5 s \(ConnectionRefusedError: .*refused\)"
    with pytest.raises(MlflowAwayError, match=silence + r"; pending: 1 record in the ledger .*/ledger$"):
        gone.run_id("a")
    with pytest.raises(MlflowAwayError, match="pending: 1 record"):
        gone.close()


def test_a_flush_may_be_less_patient_than_its_tracker(tmp_path: Path) -> None:
    gone = Tracker("http://127.0.0.1:9", "fan-out", tmp_path / "ledger")
    gone.open_run("a", name="a")
    for at_most in (0.0, 0.1):
        with pytest.raises(MlflowAwayError, match=rf"within {at_most:g} s.*; pending: 1 record "):
            gone.flush(at_most)
    gone.abandon()


def test_a_refused_record_is_named_and_holds_up_no_other(
    tracker: Open, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    log_batch = MlflowClient.log_batch

    def refuses_bad(self: Any, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        if any(metric.key == "bad" for metric in metrics):
            raise MlflowException("bad metric", error_code=1000)
        log_batch(self, run_id, metrics, params, tags)

    open_tracker = tracker()
    run_id = opened(open_tracker, "a", name="a")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", refuses_bad)
        for name in ("good", "bad", "fine"):
            open_tracker.log_metrics("a", 7, {name: 1.0})
        with pytest.raises(TrackingError, match=r"refused 1 records: metrics step 7 of a \(bad\): .*bad metric"):
            open_tracker.flush()
    assert history(uri, run_id, "good") == history(uri, run_id, "fine") == [(7, 1.0)]
    open_tracker.abandon()
    tracker().close()  # the next job tries again
    assert history(uri, run_id, "bad") == [(7, 1.0)]


def test_a_run_deleted_by_somebody_is_made_anew_with_what_it_had(tracker: Open, uri: str) -> None:
    with tracker() as first:
        deleted = opened(first, "a", name="a", params={"lr": 1})
        first.log_metrics("a", 0, {"train/loss": 1.0})
        first.set_tags("a", {"state": "old"})
    open_client(uri).delete_run(deleted)
    with tracker() as second:
        second.open_run("a", name="a", params={"lr": 1}, tags={"state": "new"})
        second.log_metrics("a", 1, {"train/loss": 0.5})
        run_id = second.run_id("a")
    assert run_id != deleted
    assert history(uri, run_id, "train/loss") == [(0, 1.0), (1, 0.5)]
    assert open_client(uri).get_run(run_id).data.params == {"lr": "1"}
    assert open_client(uri).get_run(run_id).data.tags["state"] == "new"


def test_the_first_value_of_a_step_stays_and_a_changed_param_becomes_a_tag(tracker: Open, uri: str) -> None:
    with tracker() as open_tracker:
        run_id = opened(open_tracker, "a", name="a", params={"num_workers": 1})
        open_tracker.log_metrics("a", 0, {"train/loss": 1.0})
        open_tracker.log_metrics("a", 0, {"train/loss": 2.0, "val/top1": 0.5})
        open_tracker.log_params("a", {"num_workers": 2})
    run = open_client(uri).get_run(run_id)
    assert history(uri, run_id, "train/loss") == [(0, 1.0)]
    assert history(uri, run_id, "val/top1") == [(0, 0.5)]
    assert run.data.params == {"num_workers": "1"}
    assert run.data.tags["changed.num_workers"] == "2"


def test_large_batches_long_tags_and_nan_arrive(tracker: Open, uri: str) -> None:
    with tracker() as open_tracker:
        run_id = opened(open_tracker, "a", name="a", params={f"p{i}": i for i in range(230)})
        open_tracker.log_metrics("a", 0, {f"m{i}": float(i) for i in range(2500)})
        open_tracker.log_metrics("a", 1, {"m0": math.nan, "m1": math.inf})
        open_tracker.set_tags("a", {"error": "x" * 9000, "state": "old"})
        open_tracker.set_tags("a", {"state": "new"})
    data = open_client(uri).get_run(run_id).data
    assert len(data.params) == 230
    assert len(data.metrics) == 2500
    assert math.isnan(history(uri, run_id, "m0")[1][1])
    assert data.tags["error"].endswith("x ... (cut)")
    assert data.tags["state"] == "new"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.log_metrics("a", 0, {"acc@1": 1.0}), "metric name 'acc@1'"),
        (lambda t: t.log_metrics("a", 0, {"val//top1": 1.0}), "metric name"),
        (lambda t: t.log_params("a", {"recipe": "x" * 6001}), "6001 characters"),
        (lambda t: t.log_metrics("b", 0, {"loss": 1.0}), "run 'b' is not open"),
        (lambda t: t.run_id("b"), "run 'b' is not open"),
        (lambda t: t.open_run("it's", name="x"), "run key"),
        (lambda t: t.open_run("c", name="c", parent_key="b"), "its parent b is not open"),
        (lambda t: t.close_run("a", "DONE"), "expected one of FINISHED, FAILED, KILLED"),
        (lambda t: t.log_artifact("a", "none.png"), "no such file"),
        (lambda t: t.log_artifact("a", __file__, "../up"), "inside the run's artifacts"),
    ],
)
def test_a_fault_of_the_caller_is_told_at_once(tracker: Open, call: Callable[[Tracker], Any], message: str) -> None:
    with tracker() as open_tracker:
        open_tracker.open_run("a", name="a")
        with pytest.raises(TrackingError, match=message):
            call(open_tracker)


def test_two_trackers_on_one_ledger_are_refused(tracker: Open) -> None:
    with tracker(), pytest.raises(LedgerError, match="in use by another process"):
        tracker()


@pytest.mark.parametrize("folder", ["ledger", "~/ledger", "s3://bucket/ledger", ""])
def test_a_ledger_that_would_be_relative_to_the_current_directory_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LedgerError, match="expected an absolute path"):
        Ledger(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_drops_a_torn_last_line_and_keeps_the_rest(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in range(3):
        ledger.append({"n": number})
    ledger.close()
    whole = ledger.path.read_bytes()
    end_of_second = whole.rfind(b"\n", 0, len(whole) - 1) + 1
    for cut in range(end_of_second, len(whole)):
        ledger.path.write_bytes(whole[:cut])
        again = Ledger(tmp_path)
        again.append({"n": "new"})
        assert [entry["n"] for entry in again.entries()] == [0, 1, "new"]
        again.close()


def test_a_damaged_line_in_the_middle_is_told_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text(json.dumps({"n": 0}) + "\n{broken\n" + json.dumps({"n": 2}) + "\n")
    with pytest.raises(LedgerError, match=r"ledger\.jsonl:2: damaged line"):
        list(Ledger(tmp_path).entries())


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    ledger.append({"n": 0})

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=f"^{ledger.path}: No space left on device; make room there"):
            ledger.append({"n": 1})
    ledger.append({"n": 2})
    assert [entry["n"] for entry in ledger.entries()] == [0, 2]
