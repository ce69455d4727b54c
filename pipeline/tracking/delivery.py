"""Delivers records of runs to MLflow with one thread and one client, in order and in batches.

Temporary failures (MLflow is away, busy or locked) are retried as long as the process lives, at growing intervals.
Records that MLflow refuses are set aside with the reason, so that a bad record does not block the others. If the
process is killed after MLflow's answer and before the ledger notes it, a record is delivered twice. This does no harm:
runs are found by their tag, and metrics keep their first time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.console.progress import counted
from pipeline.console.secrets import shown
from pipeline.tracking.mlflow_client import (
    MlflowAwayError,
    Patience,
    TrackingError,
    experiment_id,
    in_one_line,
    is_missing,
    is_passing,
    open_client,
    pauses,
    silence,
)

KEY_TAG = "hst.key"
BATCHED = ("metrics", "params", "tags")
_METRICS_PER_CALL = 800  # MLflow accepts 1000 entities per call, with at most 100 params and 100 tags
_PARAMS_PER_CALL = 100


@dataclass(frozen=True)
class Record:
    """One thing to deliver."""

    number: int
    """Its position in the ledger, from 0."""
    kind: str
    """``open``, ``metrics``, ``params``, ``tags``, ``artifact`` or ``close``."""
    key: str
    """The caller's key of the run."""
    time_ms: int
    """When it was written, in Unix time in milliseconds."""
    content: dict[str, Any]
    """Its content; see `pipeline.tracking.tracker.Tracker`."""

    def __str__(self) -> str:
        named = (
            ", ".join(self.content.get("values", {})) or self.content.get("path") or self.content.get("status") or ""
        )
        step = f" step {self.content['step']}" if "step" in self.content else ""
        return f"{self.kind}{step} of {self.key}" + (f" ({named})" if named else "")


class Delivery:
    """The thread that delivers records to MLflow.

    Args:
        tracking_uri, experiment, artifact_root: As for `pipeline.tracking.tracker.Tracker`.
        folder: Folder to which the paths of artifacts are relative.
        delivered: Called with records of one run, and the run's id, once MLflow has accepted them.
        patience: Limits how long `wait` waits; the delivery tells it whether MLflow answers.
    """

    experiment_id = ""
    """Id of the experiment; known as soon as a record is delivered."""

    def __init__(
        self,
        tracking_uri: str,
        experiment: str,
        artifact_root: str | None,
        folder: Path,
        delivered: Callable[[list[Record], str], None],
        patience: Patience,
    ) -> None:
        self._tracking_uri = tracking_uri
        self._experiment = experiment
        self._artifact_root = artifact_root
        self._folder = folder
        self._delivered = delivered
        self._patience = patience
        self._progressed = 0.0
        self._client: Any = None
        self._runs: dict[str, str] = {}
        self._queue: list[Record] = []
        self._refused: dict[int, tuple[Record, str]] = {}
        self._last_fault = ""
        self._one_by_one = 0
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-delivery", daemon=True)

    def start(self, pending: Iterable[Record], runs: dict[str, str]) -> None:
        """Starts with the records that an earlier process left and the runs that it had opened."""
        self._queue.extend(pending)
        self._runs.update(runs)
        self._thread.start()

    def put(self, record: Record) -> None:
        with self._changed:
            self._queue.append(record)
            self._changed.notify_all()

    def put_first(self, records: list[Record]) -> None:
        """Puts records before all waiting ones."""
        with self._changed:
            self._queue[:0] = records
            self._changed.notify_all()

    def wait(self, numbers: Iterable[int], at_most: float | None = None) -> None:
        """Returns when these records are delivered.

        Raises:
            TrackingError: MLflow refused one of them.
            MlflowAwayError: No record was delivered until patience ended, or these were not within ``at_most`` seconds.
        """
        wanted = set(numbers)
        begun = time.monotonic()
        with self._changed:
            while pending := [record for record in self._queue if record.number in wanted]:
                deadline = self._patience.deadline(max(begun, self._progressed)) if at_most is None else begun + at_most
                left = deadline - time.monotonic()
                if left <= 0:
                    seconds = self._patience.seconds if at_most is None else at_most
                    raise MlflowAwayError(
                        silence(self._tracking_uri, seconds, self._last_fault),
                        f"{counted(len(pending), 'record')} in the ledger {self._folder}",
                    )
                self._changed.wait(left)
            refused = [entry for number, entry in self._refused.items() if number in wanted]
        if refused:
            reasons = "; ".join(dict.fromkeys(reason for _, reason in refused))
            raise TrackingError(
                f"{shown(self._tracking_uri)} refused {len(refused)} records: "
                f"{_some([record for record, _ in refused])}: {reasons}"
            )

    def stop(self) -> None:
        """Ends the thread after its current call."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        waits = pauses()
        while True:
            with self._changed:
                while not self._queue and not self._stopping.is_set():
                    self._changed.wait()
                if self._stopping.is_set():
                    return
                batch = self._next_batch()
            asked = time.monotonic()
            try:
                run_id = self._deliver(batch)
                self._delivered(batch, run_id)
            except Exception as fault:
                # The thread must survive every error: `wait` shows it to the caller.
                self._last_fault = in_one_line(fault)
                if is_passing(fault):
                    self._patience.missed(asked)
                    self._stopping.wait(next(waits))
                elif len(batch) > 1:
                    self._one_by_one = len(batch)  # to find the refused record
                else:
                    self._finish(batch, refused=self._last_fault)
            else:
                waits, self._last_fault = pauses(), ""
                self._patience.answered()
                self._finish(batch)

    def _finish(self, batch: list[Record], refused: str | None = None) -> None:
        done = {record.number for record in batch}
        with self._changed:
            self._queue = [record for record in self._queue if record.number not in done]
            self._one_by_one = max(0, self._one_by_one - 1)
            self._progressed = time.monotonic()
            if refused is not None:
                self._refused |= {record.number: (record, refused) for record in batch}
            self._changed.notify_all()

    def _next_batch(self) -> list[Record]:
        """The first record, and later records of the same run that can be sent with it."""
        first, *rest = self._queue
        batch = [first]
        if first.kind not in BATCHED or self._one_by_one:
            return batch
        for record in rest:
            if record.key == first.key:
                if record.kind not in BATCHED or len(batch) >= 100:
                    break
                batch.append(record)
        return batch

    def _deliver(self, batch: list[Record]) -> str:
        if self._client is None:
            client = open_client(self._tracking_uri)
            self.experiment_id = experiment_id(client, self._experiment, artifact_root=self._artifact_root)
            self._client = client
        record = batch[0]
        if record.kind == "open":
            self._runs[record.key] = self._open(record)
        run_id = self._runs.get(record.key)
        if run_id is None:
            raise TrackingError(f"run {record.key} could not be opened")
        if record.kind in BATCHED:
            self._log_batch(run_id, batch)
        elif record.kind == "artifact":
            path = str(self._folder / record.content["path"])
            self._client.log_artifact(run_id, path, record.content["folder"] or None)
        elif record.kind == "close":
            self._client.set_terminated(run_id, record.content["status"], end_time=record.time_ms)
        return run_id

    def _open(self, record: Record) -> str:
        """Returns the run's id. Looks for the run before creating it, because an earlier answer may have been lost."""
        tags = record.content["tags"]
        if (parent := record.content.get("parent")) is not None:
            if parent not in self._runs:
                raise TrackingError(f"its parent {parent} could not be opened")
            tags = {**tags, "mlflow.parentRunId": self._runs[parent]}
        run = self._known_run(record.key) or self._tagged_run(record.key)
        if run is None:
            created = self._client.create_run(
                self.experiment_id,
                start_time=record.time_ms,
                tags=tags,
                run_name=record.content["name"],
            )
            return str(created.info.run_id)
        run_id: str = run.info.run_id
        for name, value in tags.items():
            if run.data.tags.get(name) != value:  # for example the parent, after the job was started anew
                self._client.set_tag(run_id, name, value)
        if run.info.status != "RUNNING" or run.info.run_name != record.content["name"]:
            self._client.update_run(run_id, status="RUNNING", name=record.content["name"])
        return run_id

    def _known_run(self, key: str) -> Any:
        if key not in self._runs:
            return None
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(self._runs[key])
        except MlflowException as fault:
            if is_missing(fault):
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _tagged_run(self, key: str) -> Any:
        found = self._client.search_runs(
            [self.experiment_id],
            filter_string=f"tags.`{KEY_TAG}` = '{key}'",
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        return found[0] if found else None

    def _log_batch(self, run_id: str, batch: list[Record]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics: list[Metric] = []
        params: list[Param] = []
        tags: dict[str, str] = {}
        for record in batch:
            values = record.content["values"]
            if record.kind == "metrics":
                step, when = record.content["step"], record.time_ms
                metrics += [Metric(name, float(value), when, step) for name, value in values.items()]
            elif record.kind == "params":
                params += [Param(name, value) for name, value in values.items()]
            else:
                tags |= values
        run_tags = [RunTag(name, value) for name, value in tags.items()]
        while metrics or params or run_tags:
            self._client.log_batch(
                run_id,
                metrics=metrics[:_METRICS_PER_CALL],
                params=params[:_PARAMS_PER_CALL],
                tags=run_tags[:_PARAMS_PER_CALL],
            )
            metrics, params = metrics[_METRICS_PER_CALL:], params[_PARAMS_PER_CALL:]
            run_tags = run_tags[_PARAMS_PER_CALL:]


def _some(records: list[Record], most: int = 5) -> str:
    return ", ".join(map(str, records[:most])) + (f" and {len(records) - most} more" if len(records) > most else "")
