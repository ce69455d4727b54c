"""Runs after restarts of the driver and with an MLflow that is away: nothing is lost or doubled."""

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

from pipeline.tracking.ledger import Ledger
from pipeline.tracking.mlflow_client import MlflowAwayError, TrackingError, open_client
from pipeline.tracking.tracker import Tracker
from tests.pipeline.tracking.tracked_runs import (
    Open,
    assert_one_of_each,
    away,
    history,
    opened,
    runs_of,
    write_one_of_each,
)


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


@pytest.mark.parametrize(("status", "ended"), [("FINISHED", True), ("FAILED", True), ("KILLED", False)])
def test_a_run_that_has_ended_is_known_as_such_after_a_restart(tracker: Open, status: str, ended: bool) -> None:
    with tracker() as first:
        assert not first.has_ended("k")
        first.open_run("k", name="run")
        assert not first.has_ended("k")
        first.close_run("k", status)
        assert first.has_ended("k") == ended
    with tracker() as again:
        assert again.has_ended("k") == ended
        again.open_run("k", name="run")
        assert not again.has_ended("k")


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
        from pipeline.tracking.tracker import Tracker
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
        from pipeline.tracking.tracker import Tracker
        tracker = Tracker({uri!r}, "fan-out", {str(tmp_path / "ledger")!r})
        tracker.open_run("a", name="a")
        tracker.log_metrics("a", 0, {{"train/loss": 4.0}})
        tracker.flush()
        noted = tracker._delivery._delivered
        tracker._delivery._delivered = lambda records, run_id: os.kill(os.getpid(), 9)  # the ledger misses it
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
