"""What keeps MLflow from taking a job's runs is found before the job begins, and named."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.tracking import preflight
from pipeline.tracking.mlflow_client import TrackingError, check_experiment_name, open_client
from pipeline.tracking.preflight import CHECK_FILE, CHECKED_TAG, check_experiments


@contextlib.contextmanager
def answering(status: int, body: bytes, *, at: str = "", others: bytes = b"{}") -> Iterator[str]:
    """The address of a server that gives one answer to requests whose path has ``at``, and ``others`` to the rest."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            answer = (status, body) if at in self.path else (200, others)
            self.send_response(answer[0])
            self.send_header("content-length", str(len(answer[1])))
            self.end_headers()
            self.wfile.write(answer[1])

        do_POST = do_PUT = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_missing_experiments_are_created_and_written(uri: str, tmp_path: Path) -> None:
    for _ in range(2):  # a second job finds them
        check_experiments(uri, ("mine", "hst-backbones"))
    client = open_client(uri)
    for name in ("mine", "hst-backbones"):
        experiment = client.get_experiment_by_name(name)
        assert CHECKED_TAG in experiment.tags
        assert (tmp_path / "artifacts" / name / CHECK_FILE).is_file()
    assert client.search_runs([client.get_experiment_by_name("mine").experiment_id]) == []


def test_a_server_that_keeps_artifacts_itself_is_written(mlflow_server: str) -> None:
    check_experiments(mlflow_server, ("checked before",))
    assert CHECKED_TAG in open_client(mlflow_server).get_experiment_by_name("checked before").tags


def test_a_deleted_experiment_is_named_with_what_restores_it(uri: str) -> None:
    check_experiments(uri, ("mine",))
    client = open_client(uri)
    number = client.get_experiment_by_name("mine").experiment_id
    client.delete_experiment(number)
    with pytest.raises(
        TrackingError, match=rf"'mine' is deleted; restore it .*--experiment-id {number}\).*--experiment"
    ):
        check_experiments(uri, ("mine",))
    client.restore_experiment(number)
    check_experiments(uri, ("mine",))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b"You are not authenticated."),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}'),
        (401, b'{"error_code": "UNAUTHENTICATED", "message": "Credential is missing"}'),
    ],
)
def test_a_missing_login_is_told(status: int, body: bytes) -> None:
    with answering(status, body) as uri, pytest.raises(TrackingError, match="set MLFLOW_TRACKING_USERNAME and"):
        check_experiments(uri, ("mine",))


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (404, b"<html>no such page</html>", "404"),
        (200, b"<html>welcome</html>", "not in a valid JSON"),
        (503, b"", "503"),
    ],
)
def test_a_server_that_is_not_mlflow_is_told(
    status: int, body: bytes, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "REQUEST_S", 1.0)
    with answering(status, body) as uri, pytest.raises(TrackingError, match=told) as raised:
        check_experiments(uri, ("mine",))
    assert "USERNAME" not in str(raised.value)


def test_who_may_read_and_not_write_is_told_so() -> None:
    denied = b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}'
    found = b'{"experiment": {"experiment_id": "7", "name": "mine", "lifecycle_stage": "active"}}'
    told = r"experiment 'mine' cannot be written: .*may write there"
    with (
        answering(403, denied, at="set-experiment-tag", others=found) as uri,
        pytest.raises(TrackingError, match=told),
    ):
        check_experiments(uri, ("mine",))


def test_a_silent_server_is_told_in_a_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "REQUEST_S", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(TrackingError, match="experiments cannot be read: TimeoutError"):
            check_experiments(f"http://127.0.0.1:{silent.getsockname()[1]}", ("mine",))
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "300"


def test_nobody_at_the_address_is_told(unused_port: int) -> None:
    with pytest.raises(TrackingError, match="no MLflow server answers there"):
        check_experiments(f"http://127.0.0.1:{unused_port}", ("mine",))


def test_a_store_of_artifacts_that_is_silent_does_not_hold_the_job(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(preflight, "WHOLE_S", 1.0)
    monkeypatch.setattr(preflight, "_check", lambda *_: ended.wait(60))
    with pytest.raises(TrackingError, match="silent for 1 s"):
        check_experiments(uri, ("mine",))
    ended.set()


def test_a_database_that_cannot_be_written_is_told(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "REQUEST_S", 0.2)
    check_experiments(uri, ("mine",))
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        for event in ("INSERT", "UPDATE"):  # whoever runs the tests may write every file
            database.execute(
                f"CREATE TRIGGER no_{event} BEFORE {event} ON experiment_tags BEGIN "
                "SELECT RAISE(ABORT, 'attempt to write a readonly database'); END"
            )
        database.commit()
        with pytest.raises(TrackingError, match=r"'mine' cannot be written: .*readonly database"):
            check_experiments(uri, ("mine",))
        database.execute("BEGIN IMMEDIATE")
        with pytest.raises(TrackingError, match="the database cannot be written: OperationalError: database is locked"):
            check_experiments(uri, ("mine",))


def test_a_file_that_is_no_database_and_a_folder_in_its_place_are_told(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("something else " * 500)
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(TrackingError, match=r"the database cannot be written: .*not a database"):
        check_experiments(f"sqlite:///{tmp_path}/text.db", ("mine",))
    with pytest.raises(TrackingError, match=r"the database cannot be written: .*unable to open"):
        check_experiments(f"sqlite:///{tmp_path}/folder.db", ("mine",))


def test_artifacts_that_cannot_be_written_are_told_with_their_place(uri: str, tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("a file where the folder should be")
    with pytest.raises(TrackingError, match=rf"artifacts of experiment 'mine' .* {tmp_path}/artifacts/mine: "):
        check_experiments(uri, ("mine",))


@pytest.mark.parametrize("name", ["", " mine", "mine ", "../mine", "a/../b", "a\nb", "x" * 251, "a?b", "a#b"])
def test_names_that_cannot_be_folders_are_refused(name: str) -> None:
    with pytest.raises(TrackingError, match="expected 1 to 250"):
        check_experiment_name(name)


@pytest.mark.parametrize("name", ["hst", "/Users/me@host/my tasks", "a.b-c_d:e+f", "Größe"])
def test_other_names_are_taken(name: str) -> None:
    check_experiment_name(name)
