"""The tracker loses and doubles nothing, whatever happens to MLflow or to the driver."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking.ledger import Ledger, LedgerError
from pipeline.tracking.mlflow_client import TrackingError, open_client
from pipeline.tracking.tracker import Tracker
from tests.pipeline.tracking.tracked_runs import Open, assert_one_of_each, history, opened, write_one_of_each


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


def test_no_login_or_signature_is_kept_in_the_ledger_or_in_mlflow(
    tracker: Open, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")
    address = "https://me:hunter22@host/x?sig=hunter22"
    with tracker() as open_tracker:
        run_id = opened(open_tracker, "a", name="a", params={"data": address}, tags={"error": f"{address} is away"})
        open_tracker.log_params("a", {"data": "hunter22"})
        open_tracker.set_tags("a", {"note": "hunter22"})
    run = open_client(uri).get_run(run_id)
    assert run.data.params["data"] == "https://***@host/x?..."
    assert run.data.tags["error"] == "https://***@host/x?... is away"
    assert run.data.tags["changed.data"] == run.data.tags["note"] == "***"
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"hunter22" not in path.read_bytes(), path


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
