"""The one way in which the project speaks to MLflow: an explicit client, no global state, no silent repeats.

mlflow is imported inside functions: command line tools that import this module start at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse

T = TypeVar("T")

PATIENCE_S = 120.0
"""How long an MLflow that is away is waited for, by all together who need it."""
GLANCE_S = 10.0
"""How long one still looks who comes when that time is over; the pauses between two attempts are shorter."""
_SQLITE = "sqlite:///"
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow's own client repeats a request whose answer was lost, which doubles what it creates. We repeat
    # ourselves, and look first whether the lost request had its effect.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_PASSING_ERRORS = {
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
    "DEADLINE_EXCEEDED",
    "ABORTED",
}


class TrackingError(ValueError):
    """MLflow cannot be used as asked, or did not take what it was given."""


class MlflowAwayError(TrackingError):
    """MLflow did not answer while there was patience."""

    def __init__(self, silence: str, pending: str = "") -> None:
        super().__init__(f"{silence}; pending: {pending}" if pending else silence)
        self.silence = silence
        """Who did not answer for how long, and how that showed."""
        self.pending = pending
        """What was for it; empty where the caller knows."""


class Patience:
    """With an MLflow that is away: shared by all who speak to it, so that they do not wait one after the other."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = PATIENCE_S if seconds is None else seconds
        self._away_since: float | None = None

    def missed(self, asked: float) -> None:
        """There was no answer to what was asked at this time (of time.monotonic())."""
        if self._away_since is None:
            self._away_since = asked

    def answered(self) -> None:
        """MLflow is there."""
        self._away_since = None

    def deadline(self, begun: float) -> float:
        """Until when one waits who began to at this time (both of time.monotonic())."""
        since = begun if self._away_since is None else min(begun, self._away_since)
        return max(since + self.seconds, begun + min(GLANCE_S, self.seconds))


def open_client(tracking_uri: str, *, create: bool = True) -> Any:
    """An ``MlflowClient`` whose tracking store and registry are both ``tracking_uri`` (a server, or ``sqlite:///ABS``).

    A new sqlite database gets its schema here, once, under a lock: writers that all meet an empty one fail. With
    ``create=False`` a database that is not there is an error.
    """
    check_tracking_uri(tracking_uri)
    if not create and (database := sqlite_path(tracking_uri)) is not None and not database.is_file():
        raise TrackingError(f"tracking URI {tracking_uri}: no such database")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    with _schema_lock(tracking_uri):
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        if sqlite_path(tracking_uri) is not None:
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
    return client


def check_tracking_uri(tracking_uri: str) -> None:
    """Raises TrackingError where the URI is neither a server's nor an absolute sqlite path."""
    scheme = urlparse(tracking_uri).scheme
    database = sqlite_path(tracking_uri)
    if scheme in ("http", "https") and urlparse(tracking_uri).netloc:
        return
    if database is None or not database.is_absolute():
        raise TrackingError(
            f"tracking URI {tracking_uri!r}: expected http(s)://HOST:PORT of an MLflow server, or sqlite:////ABSOLUTE/PATH"
        )


def sqlite_path(tracking_uri: str) -> Path | None:
    """The database file of a sqlite URI; None for a server."""
    return Path(tracking_uri.removeprefix(_SQLITE)) if tracking_uri.startswith(_SQLITE) else None


def is_reachable(tracking_uri: str, timeout_seconds: float = 2.0) -> bool:
    """Whether something listens there (a server), or the database exists (sqlite)."""
    database = sqlite_path(tracking_uri)
    if database is not None:
        return database.is_file()
    parts = urlparse(tracking_uri)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((unquote(parts.hostname or ""), port), timeout=timeout_seconds).close()
    except OSError:
        return False
    return True


def experiment_id(client: Any, name: str, *, artifact_root: str | None = None) -> str:
    """The id of experiment ``name``, created where missing.

    Its artifact location is explicit: ``artifact_root``/name, by default ``artifacts/`` beside a sqlite database, since
    MLflow's own default is below the current directory. A server without ``artifact_root`` chooses for itself.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database = sqlite_path(client.tracking_uri)
        if artifact_root is None and database is not None:
            artifact_root = str(database.parent / "artifacts")
        location = None if artifact_root is None else f"{artifact_root.rstrip('/')}/{name}"
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as fault:
            if fault.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)  # somebody else was faster
    if found is None or found.lifecycle_stage != "active":
        raise TrackingError(f"experiment {name!r} of {client.tracking_uri} is deleted; restore it or take another name")
    return str(found.experiment_id)


def is_passing(fault: Exception) -> bool:
    """Whether trying again later can help: MLflow is away, busy or locked, rather than refusing what it was given."""
    from mlflow.exceptions import MlflowException

    if isinstance(fault, MlflowException):
        return fault.error_code in _PASSING_ERRORS
    answer = getattr(fault, "response", None)  # of requests.HTTPError, raised when artifacts travel
    if answer is not None and answer.status_code < 500:
        return False
    return isinstance(fault, ConnectionError | TimeoutError) or type(fault).__module__.startswith(
        ("requests.", "urllib3.")
    )


def is_missing(fault: Exception) -> bool:
    """Whether MLflow says that what was asked for does not exist."""
    return getattr(fault, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


def pauses(first_seconds: float = 0.25, most_seconds: float = 8.0) -> Iterator[float]:
    """Seconds to wait before each further attempt."""
    pause = first_seconds
    while True:
        yield pause
        pause = min(2 * pause, most_seconds)


def persistently(action: Callable[[], T], *, tracking_uri: str, patience: Patience | None = None) -> T:
    """``action()``, tried again while its faults are passing ones and patience lasts. It must be safe to repeat.

    Raises MlflowAwayError when patience is over.
    """
    patience = patience or Patience()
    begun = time.monotonic()
    for pause in pauses():
        asked = time.monotonic()
        try:
            result = action()
        except Exception as fault:
            if not is_passing(fault):
                raise
            patience.missed(asked)
            if time.monotonic() + pause > patience.deadline(begun):
                raise MlflowAwayError(silence(tracking_uri, patience.seconds, in_one_line(fault))) from fault
            time.sleep(pause)
        else:
            patience.answered()
            return result
    raise AssertionError("pauses() never ends")


def silence(tracking_uri: str, seconds: float, fault: str) -> str:
    """What MlflowAwayError says of an MLflow; ``fault`` is empty where nothing came of the only attempt yet."""
    return f"MLflow at {tracking_uri} did not answer within {seconds:g} s" + (f" ({fault})" if fault else "")


def in_one_line(fault: BaseException) -> str:
    """A fault for people; of a connection that failed, what the system says and not the libraries around it."""
    link = fault.__cause__ or fault.__context__
    while link is not None:
        fault = link if isinstance(link, OSError) else fault
        link = link.__cause__ or link.__context__
    return f"{type(fault).__name__}: {(str(fault).splitlines() or [''])[0]}"


@contextlib.contextmanager
def _schema_lock(tracking_uri: str) -> Iterator[None]:
    database = sqlite_path(tracking_uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    quiet = logging.getLogger("mlflow.store.db.utils")  # "Creating initial MLflow database tables..."
    quiet.setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with open(f"{database}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
