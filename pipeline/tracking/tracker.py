"""Writes MLflow runs. Only the driver does so: into a ledger first; a background thread delivers it to MLflow.

A record is in the ledger before the call that made it returns. So training never waits for MLflow, and nothing is lost
while MLflow is away or when the driver is killed: the next `Tracker` on the same ledger delivers the rest. Only
`run_id`, `flush` and `close` wait. Each record takes effect once. A metric has one value per step: a step that a
resumed training repeats is not logged again.
"""

from __future__ import annotations

import math
import posixpath
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.console.secrets import shown
from pipeline.tracking.delivery import BATCHED, KEY_TAG, Delivery, Record
from pipeline.tracking.ledger import Ledger
from pipeline.tracking.mlflow_client import Patience, TrackingError, check_tracking_uri

STATUSES = ("FINISHED", "FAILED", "KILLED")
MAX_PARAM_CHARACTERS = 6000
MAX_TAG_CHARACTERS = 8000
_NAME = re.compile(r"[\w\-. :/]{1,250}")  # names that MLflow accepts for params, tags and metrics
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/=+,@-]{0,399}")


class Tracker:
    """Runs of one experiment. The caller chooses a key for each, which stays valid after a restart.

    Args:
        tracking_uri: An MLflow server, or ``sqlite:////ABSOLUTE/PATH``.
        experiment: Name of the experiment, which is created if missing.
        ledger_dir: An absolute local folder that outlives the job, one per job.
        artifact_root: Root of a new experiment's artifacts (default: beside the database; a server chooses its own).
        patience_seconds: How long `run_id` and `flush` wait for an MLflow that is away (default: PATIENCE_S of
            `pipeline.tracking.mlflow_client`).
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment: str,
        ledger_dir: Path | str,
        *,
        artifact_root: str | None = None,
        patience_seconds: float | None = None,
    ) -> None:
        check_tracking_uri(tracking_uri)
        self._ledger = Ledger(ledger_dir)
        self._lock = threading.RLock()  # guards what is known and the order of the ledger
        self.patience = Patience(patience_seconds)
        """Share it with all other code that uses the same MLflow."""
        self._next_number = 0
        self._opens: dict[str, int] = {}
        self._ended: set[str] = set()
        self._runs: dict[str, str] = {}
        self._params: dict[str, dict[str, str]] = {}
        self._metrics: set[tuple[str, str, int]] = set()
        pending = self._recall()
        self._delivery = Delivery(
            tracking_uri, experiment, artifact_root, self._ledger.folder, self._delivered, self.patience
        )
        self._delivery.start(pending, self._runs)

    def open_run(
        self,
        key: str,
        *,
        name: str,
        parent_key: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens the run of ``key``: creates it if there is none, else sets it to running again.

        The ledger, or else the tag ``hst.key`` on the server, identifies the run, so a restart never creates a second.
        """
        if not _KEY.fullmatch(key):
            raise TrackingError(f"run key {key!r}: expected letters, digits and ' ._:/=+,@-', at most 400")
        if parent_key is not None and parent_key not in self._opens:
            raise TrackingError(f"run {key}: its parent {parent_key} is not open")
        parent = {} if parent_key is None else {"parent": parent_key}  # its id is known at delivery
        self._write("open", key, {"name": name, "tags": {KEY_TAG: key}, **parent})
        if params:
            self.log_params(key, params)
        if tags:
            self.set_tags(key, tags)

    def run_id(self, key: str) -> str:
        """The id of the run of ``key``; waits until MLflow has it.

        Raises TrackingError if the run was never opened or MLflow refused it, MlflowAwayError when patience is over.
        """
        with self._lock:
            self._check_open(key)
            number = self._opens[key]
        self._delivery.wait([number])
        with self._lock:
            return self._runs[key]

    @property
    def experiment_id(self) -> str:
        """Id of the experiment; empty until MLflow has accepted something from this tracker."""
        return self._delivery.experiment_id

    def has_ended(self, key: str) -> bool:
        """Whether this process, or an earlier one on the ledger, closed the run of ``key``, other than as KILLED."""
        with self._lock:
            return key in self._ended

    def log_metrics(self, key: str, step: int, metrics: Mapping[str, float]) -> None:
        """Logs values of one step. A metric that already has a value at this step keeps it."""
        values = {_checked_name("metric", name): float(value) for name, value in metrics.items()}
        with self._lock:
            new = {name: value for name, value in values.items() if (key, name, step) not in self._metrics}
            if new:
                self._write("metrics", key, {"step": int(step), "values": {n: _to_json(v) for n, v in new.items()}})

    def log_params(self, key: str, params: Mapping[str, Any]) -> None:
        """Logs parameters. MLflow's never change: a different later value becomes the tag ``changed.<name>``."""
        values = {_checked_name("parameter", name): shown(str(value)) for name, value in params.items()}
        for name, value in values.items():
            if len(value) > MAX_PARAM_CHARACTERS:
                raise TrackingError(f"parameter {name}: {len(value)} characters, MLflow takes {MAX_PARAM_CHARACTERS}")
        with self._lock:
            known = self._params.get(key, {})
            new = {name: value for name, value in values.items() if name not in known}
            changed = {f"changed.{name}": value for name, value in values.items() if known.get(name, value) != value}
            if new:
                self._write("params", key, {"values": new})
            if changed:
                self.set_tags(key, changed)

    def set_tags(self, key: str, tags: Mapping[str, Any]) -> None:
        """Sets tags; a later value replaces an earlier one. A text too long for MLflow is cut and marked as cut."""
        values = {_checked_name("tag", name): _fitting(shown(str(value))) for name, value in tags.items()}
        if values:
            self._write("tags", key, {"values": values})

    def log_artifact(self, key: str, local_path: str | Path, artifact_dir: str = "") -> None:
        """Logs a file with its current content: the ledger keeps a copy until it is delivered."""
        source = Path(local_path)
        if artifact_dir.startswith("/") or ".." in artifact_dir.split("/"):
            raise TrackingError(
                f"artifact folder {artifact_dir!r}: expected a relative path inside the run's artifacts"
            )
        if not source.is_file():
            raise TrackingError(f"artifact {source}: no such file")
        with self._lock:
            kept = Path("artifacts") / f"{self._next_number:08d}" / source.name
            (self._ledger.folder / kept).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, self._ledger.folder / kept)
            self._write("artifact", key, {"path": str(kept), "folder": artifact_dir})

    def close_run(self, key: str, status: str = "FINISHED") -> None:
        """Ends the run now, with one of STATUSES."""
        if status not in STATUSES:
            raise TrackingError(f"status {status!r}: expected one of {', '.join(STATUSES)}")
        self._write("close", key, {"status": status})

    def flush(self, at_most: float | None = None) -> None:
        """Returns when all records written so far are in MLflow.

        Raises TrackingError, which names the records that MLflow refused. Raises MlflowAwayError if it did not accept
        all before patience ended, or within ``at_most`` seconds. These records stay in the ledger, and the next
        `Tracker` on it tries again.
        """
        with self._lock:
            numbers = range(self._next_number)
        self._delivery.wait(numbers, at_most)

    def close(self) -> None:
        """Delivers what is left, then releases the ledger; raises as `flush` does."""
        try:
            self.flush()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Releases the ledger without waiting; pending records stay in it."""
        self._delivery.stop()
        self._ledger.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if fault is None:
            self.close()
        else:
            self.abandon()  # must not hide the exception that is being raised

    def _check_open(self, key: str) -> None:
        if key not in self._opens:
            raise TrackingError(f"run {key!r} is not open")

    def _write(self, kind: str, key: str, content: dict[str, Any]) -> None:
        """Writes a record to the ledger and hands it to the delivery."""
        with self._lock:
            if kind != "open":
                self._check_open(key)
            record = Record(self._next_number, kind, key, int(time.time() * 1000), content)
            self._ledger.append({"n": record.number, "kind": kind, "key": key, "ms": record.time_ms, **content})
            self._next_number += 1
            self._remember(record)
            self._delivery.put(record)

    def _remember(self, record: Record) -> None:
        if record.kind == "open":
            self._opens[record.key] = record.number
            self._ended.discard(record.key)
        elif record.kind == "close" and record.content["status"] != "KILLED":
            self._ended.add(record.key)
        elif record.kind == "metrics":
            self._metrics |= {(record.key, name, record.content["step"]) for name in record.content["values"]}
        elif record.kind == "params":
            self._params.setdefault(record.key, {}).update(record.content["values"])

    def _delivered(self, records: list[Record], run_id: str) -> None:
        """The delivery calls this when MLflow has accepted records of one run."""
        key = records[0].key
        with self._lock:
            self._ledger.append({"delivered": [record.number for record in records], "run": run_id})
            replaced = self._runs.get(key, run_id) != run_id
            self._runs[key] = run_id
            if replaced:  # the earlier run was deleted: send its records to the new run
                earlier = [r for r in self._records() if r.key == key and r.number < records[0].number]
                # They go before later records, whose values must win.
                self._delivery.put_first([record for record in earlier if record.kind in BATCHED])
        for record in records:
            if record.kind == "artifact":
                shutil.rmtree((self._ledger.folder / record.content["path"]).parent)

    def _recall(self) -> list[Record]:
        """Reads what an earlier process left in the ledger; returns the records that it did not deliver."""
        records = {record.number: record for record in self._records()}
        for record in records.values():
            self._remember(record)
        self._next_number = len(records)
        delivered: set[int] = set()
        for entry in self._ledger.entries():
            if "delivered" in entry:
                delivered.update(entry["delivered"])
                self._runs[records[entry["delivered"][0]].key] = entry["run"]
        return [record for number, record in records.items() if number not in delivered]

    def _records(self) -> Iterator[Record]:
        for entry in self._ledger.entries():
            if "delivered" not in entry:
                number, kind, key, time_ms = (entry.pop(name) for name in ("n", "kind", "key", "ms"))
                yield Record(number, kind, key, time_ms, entry)


def _checked_name(what: str, name: str) -> str:
    if not _NAME.fullmatch(name) or posixpath.normpath(name) != name or name.startswith(("/", ".")):
        raise TrackingError(f"{what} name {name!r}: MLflow takes letters, digits and '_-. :/', at most 250")
    return name


def _fitting(text: str) -> str:
    mark = " ... (cut)"
    return text if len(text) <= MAX_TAG_CHARACTERS else text[: MAX_TAG_CHARACTERS - len(mark)] + mark


def _to_json(value: float) -> float | str:
    """The value itself; NaN and infinity as text, because JSON has neither."""
    return value if math.isfinite(value) else repr(value)
