"""The project's only access to MLflow: an explicit client, no global state, no silent retries.

mlflow is imported inside functions, so that command line tools that import this module start at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse

from pipeline.console.secrets import shown, shown_refused

T = TypeVar("T")

PATIENCE_S = 120.0
"""How long all callers together wait for an MLflow that is away."""
GLANCE_S = 10.0
"""How long a caller waits at least, even if that time is over; longer than any pause between two attempts."""
_EXPERIMENT = re.compile(r"[\w .:/@+-]{1,250}")
_SQLITE = "sqlite:///"
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow's own client repeats a request whose answer was lost, which creates things twice. We retry ourselves, and
    # check first whether the lost request took effect.
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
    """MLflow cannot be used as requested, or refused a request."""


class MlflowAwayError(TrackingError):
    """MLflow did not answer before patience ended."""

    def __init__(self, silence: str, pending: str = "") -> None:
        super().__init__(f"{silence}; pending: {pending}" if pending else silence)
        self.silence = silence
        """Which MLflow did not answer, for how long, and with which error."""
        self.pending = pending
        """What waits for delivery; empty if the caller knows."""


class Patience:
    """How long to wait for an MLflow that is away. All its callers share one, so that their waits do not add up."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = PATIENCE_S if seconds is None else seconds
        self._away_since: float | None = None

    def missed(self, asked: float) -> None:
        """Notes that a request made at this time (of time.monotonic()) got no answer."""
        if self._away_since is None:
            self._away_since = asked

    def answered(self) -> None:
        """Notes that MLflow has answered."""
        self._away_since = None

    def deadline(self, begun: float) -> float:
        """Until when a caller waits that began at this time (both of time.monotonic())."""
        since = begun if self._away_since is None else min(begun, self._away_since)
        return max(since + self.seconds, begun + min(GLANCE_S, self.seconds))


def open_client(tracking_uri: str, *, create: bool = True) -> Any:
    """An ``MlflowClient`` whose tracking store and registry are both ``tracking_uri`` (a server, or ``sqlite:///ABS``).

    A new sqlite database gets its schema here, under a lock: several writers fail if they all meet an empty database.
    With ``create=False`` a missing database is an error.
    """
    check_tracking_uri(tracking_uri)
    if not create and (database := sqlite_path(tracking_uri)) is not None and not database.is_file():
        raise TrackingError(f"tracking URI {shown(tracking_uri)}: no such database")
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
    """Raises TrackingError if the URI is neither a server's nor an absolute sqlite path."""
    database = sqlite_path(tracking_uri)
    if not (_is_server(tracking_uri) if database is None else database.is_absolute()):
        raise TrackingError(
            f"tracking URI {shown_refused(tracking_uri)!r}: expected http(s)://HOST:PORT of an MLflow server, or "
            "sqlite:////ABSOLUTE/PATH; a login is given in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )


def check_experiment_name(name: str) -> None:
    """Raises TrackingError for a name that could not also be a folder of artifacts."""
    if not _EXPERIMENT.fullmatch(name) or name != name.strip() or ".." in name.split("/"):
        raise TrackingError(
            f"experiment {name!r}: expected 1 to 250 letters, digits, spaces and '._:/@+-', without '..'"
        )


def _is_server(tracking_uri: str) -> bool:
    try:
        parts = urlparse(tracking_uri)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number, or a bracket is open
        return False
    # With an @ behind the host, a / or # of a password was not written as %2F or %23.
    return valid and "@" not in parts.path + parts.query + parts.fragment and not re.search(r"\s", tracking_uri)


def sqlite_path(tracking_uri: str) -> Path | None:
    """The database file of a sqlite URI; None for a server."""
    return Path(tracking_uri.removeprefix(_SQLITE)) if tracking_uri.startswith(_SQLITE) else None


def is_reachable(tracking_uri: str, timeout_seconds: float = 2.0) -> bool:
    """Whether something listens at the address (server), or the database exists (sqlite)."""
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
    """The id of experiment ``name``, which is created if missing.

    Its artifacts go to ``artifact_root``/name. The default root is ``artifacts/`` beside a sqlite database, because
    MLflow's own default is below the current directory. Without ``artifact_root``, a server chooses the location.
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
        found = client.get_experiment_by_name(name)  # another process has just created it
    if found is None or found.lifecycle_stage != "active":
        raise TrackingError(
            f"{shown(client.tracking_uri)}: experiment {name!r} is deleted; restore it (mlflow experiments restore "
            f"--experiment-id {'ID' if found is None else found.experiment_id}); a job's runs can go to another one "
            "(--experiment)"
        )
    return str(found.experiment_id)


def is_passing(fault: Exception) -> bool:
    """Whether a later retry can help: MLflow is away, busy or locked, but does not refuse the request."""
    from mlflow.exceptions import MlflowException

    if isinstance(fault, MlflowException):
        return fault.error_code in _PASSING_ERRORS
    answer = getattr(fault, "response", None)  # requests.HTTPError, raised by transfers of artifacts
    if answer is not None and answer.status_code < 500:
        return False
    return isinstance(fault, ConnectionError | TimeoutError) or type(fault).__module__.startswith(
        ("requests.", "urllib3.")
    )


def is_missing(fault: Exception) -> bool:
    """Whether MLflow says that the requested object does not exist."""
    return getattr(fault, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


def pauses(first_seconds: float = 0.25, most_seconds: float = 8.0) -> Iterator[float]:
    """Seconds to wait before each retry."""
    pause = first_seconds
    while True:
        yield pause
        pause = min(2 * pause, most_seconds)


def persistently(action: Callable[[], T], *, tracking_uri: str, patience: Patience | None = None) -> T:
    """Returns ``action()``, and retries it after temporary failures while patience lasts. It must be safe to repeat.

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
    """The text of MlflowAwayError; ``fault`` is empty if the first attempt has not failed yet."""
    return f"MLflow at {shown(tracking_uri)} did not answer within {seconds:g} s" + (f" ({fault})" if fault else "")


def in_one_line(fault: BaseException) -> str:
    """An error in one line for people; for a failed connection, the system's message instead of the libraries'."""
    link = fault.__cause__ or fault.__context__
    while link is not None:
        fault = link if isinstance(link, OSError) else fault
        link = link.__cause__ or link.__context__
    return f"{type(fault).__name__}: {(shown(str(fault)).splitlines() or [''])[0]}"


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
