"""Before anything is trained: MLflow answers, takes the login, keeps runs and tags, and takes artifacts."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.console.secrets import shown
from pipeline.tracking.mlflow_client import (
    MlflowAwayError,
    Patience,
    TrackingError,
    experiment_id,
    in_one_line,
    is_reachable,
    open_client,
    persistently,
    sqlite_path,
)

CHECKED_TAG = "hst.checked"
"""An experiment's tag with the time of the last check, whose writing is the check."""
CHECK_FILE = "hst-check.txt"
"""A small file beside the runs' artifacts, whose upload is the check."""
REQUEST_S = 5.0
"""How long a request may take, and how long it is repeated."""
WHOLE_S = 60.0
"""How long all of it may take: stores of artifacts have their own patience."""
_MOST_CHARACTERS = 200
_LOGIN = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of a user who may write there"
)


def check_experiments(tracking_uri: str, names: Sequence[str]) -> None:
    """Checks that a job can write runs of these experiments and their artifacts. Missing experiments are created.

    Args:
        tracking_uri: An MLflow server, or ``sqlite:////ABSOLUTE/PATH``.
        names: The names of the experiments.

    Raises:
        TrackingError: Nothing answers, the login is missing or refused, an experiment is deleted, or the database or
            the store of artifacts cannot be written. The message says which, and what to do.
    """
    faults: list[Exception] = []

    def check() -> None:
        try:
            with _short_requests():
                _check(tracking_uri, names)
        except Exception as error:  # raised below, in the caller's thread
            faults.append(error)

    # A daemon, since a store of artifacts that is silent would keep the process from ending.
    thread = threading.Thread(target=check, name="check-mlflow", daemon=True)
    thread.start()
    thread.join(WHOLE_S)
    if thread.is_alive():
        raise TrackingError(f"{shown(tracking_uri)}: MLflow or its store of artifacts is silent for {WHOLE_S:g} s")
    if faults:
        raise faults[0]


def _check(tracking_uri: str, names: Sequence[str]) -> None:
    database = sqlite_path(tracking_uri)
    if database is not None:
        with _told(tracking_uri, "the database cannot be written"):
            _begin_to_write(database)
    elif not is_reachable(tracking_uri):
        raise TrackingError(f"{shown(tracking_uri)}: no MLflow server answers there")
    with _told(tracking_uri, "its experiments cannot be read"):
        client = open_client(tracking_uri)
        persistently(
            lambda: client.search_experiments(max_results=1),
            tracking_uri=tracking_uri,
            patience=Patience(REQUEST_S),
        )
    for name in names:
        with _told(tracking_uri, f"experiment {name!r} cannot be written"):
            location = persistently(
                lambda name=name: _written(client, name),  # type: ignore[misc]
                tracking_uri=tracking_uri,
                patience=Patience(REQUEST_S),
            )
        with _told(tracking_uri, f"artifacts of experiment {name!r} cannot be written to {shown(location)}"):
            _upload(location, tracking_uri)


def _begin_to_write(database: Path) -> None:
    """Fails at once where MLflow tries for minutes."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(database, timeout=REQUEST_S)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.rollback()


def _written(client: Any, name: str) -> str:
    """Writes the experiment's tag; returns where its artifacts go."""
    experiment = experiment_id(client, name)
    client.set_experiment_tag(experiment, CHECKED_TAG, datetime.now(UTC).isoformat(timespec="seconds"))
    return str(client.get_experiment(experiment).artifact_location)


def _upload(location: str, tracking_uri: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / CHECK_FILE
        file.write_text("Jobs write this file before they begin, to see that artifacts can be written.\n")
        get_artifact_repository(location, tracking_uri=tracking_uri).log_artifact(str(file))


@contextlib.contextmanager
def _told(tracking_uri: str, what: str) -> Iterator[None]:
    """Turns whatever MLflow and its stores raise into one TrackingError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, TrackingError) and not isinstance(error, MlflowAwayError):
            raise
        cause = error.__cause__ if isinstance(error, MlflowAwayError) and error.__cause__ is not None else error
        reason = in_one_line(cause)
        reason = reason if len(reason) <= _MOST_CHARACTERS else reason[:_MOST_CHARACTERS] + "..."
        help_text = f"; {_LOGIN}" if _is_refused(cause) else ""
        raise TrackingError(f"{shown(tracking_uri)}: {what}: {reason}{help_text}") from error


def _is_refused(fault: BaseException) -> bool:
    """Whether a server wants another login."""
    answer = getattr(fault, "response", None)
    return getattr(fault, "error_code", None) in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED") or (
        answer is not None and answer.status_code in (401, 403)
    )


@contextlib.contextmanager
def _short_requests() -> Iterator[None]:
    """MLflow's own requests end after REQUEST_S. Nothing else uses MLflow before a job has begun."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name)
    os.environ[name] = f"{REQUEST_S:.0f}"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
