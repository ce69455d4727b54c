"""No secret of a command line or an environment stands in what a job prints or stores.

The job runs in this process, without Ray. Its MLflow answers, refuses everything and repeats the login that it got.
"""

import base64
import contextlib
import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs import fanout_vtab, search_task, write_shards
from pipeline.cluster.resources import Plan, Room
from pipeline.console.command_line import leave_with
from pipeline.fanout import fanout
from pipeline.fanout.fanout import Outcome

LOGIN = "someone:swordfish-1"
SECRETS = {
    "swordfish-1": "in the tracking URI",
    "swordfish-2": "MLFLOW_TRACKING_PASSWORD",
    "swordfish-3": "AWS_SECRET_ACCESS_KEY",
    "swordfish-4": "in RAY_ADDRESS",
    "swordfish-5": "in a signed address",
}


class Refusing(BaseHTTPRequestHandler):
    """An MLflow that lets nobody in."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        login = base64.b64decode((self.headers["Authorization"] or "").removeprefix("Basic ")).decode()
        answer = json.dumps(
            {"error_code": "PERMISSION_DENIED", "message": f"http://{login}@here: no, {login}"}
        ).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def tracking_uri() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{LOGIN}@127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment of a job, with secrets in it, and stand-ins for what needs a cluster."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "swordfish-2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "swordfish-3")
    monkeypatch.setenv("RAY_ADDRESS", "ray://someone:swordfish-4@head:10001")
    for job in (fanout_vtab, search_task):
        monkeypatch.setattr(job, "prepare_ray_environment", lambda: None)
    plan = Plan(num_workers=1, concurrent=1, cpus_per_worker=1, gpus_per_worker=0)
    monkeypatch.setattr(fanout, "connect", contextlib.nullcontext)
    monkeypatch.setattr(fanout, "put_backbone", lambda backbone: None)
    monkeypatch.setattr(
        fanout,
        "plan_fanout",
        lambda options, jobs, loaded, weights, *, done, say: (plan, Room(at_once=1, cpus=1, gpus=0), jobs),
    )


@pytest.fixture
def words(tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options of a fan-out of one small task, on a micro ViT, and this process's command line."""
    for number in range(40):
        folder = tmp_path / "photos" / ("light" if number % 2 else "dark")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((32, 32, 3), number + 150 * (number % 2), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "own.toml").write_text('[tasks.own-light]\ndata = "photos"\n')
    words = ["--task-file", str(tmp_path / "own.toml"), "--storage", str(tmp_path / "storage")]
    words += ["--tracking-uri", tracking_uri, "--set", "epochs=1", "--set", "image_size=32"]
    words += ["--backbone", "hst_vit_micro_patch8_64", "--backbone-weights", "random"]
    monkeypatch.setattr(sys, "argv", ["jobs/fanout_vtab.py", *words])
    return words


def run(job: Any, words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status of a job and all that it prints, without secrets."""
    with pytest.raises(SystemExit) as left:
        leave_with(lambda: job.main(words))
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert_no_secret("what is printed", printed)
    assert isinstance(left.value.code, int)
    return left.value.code, printed


def assert_no_secret(where: str, text: str) -> None:
    for secret, name in SECRETS.items():
        assert secret not in text, f"{where}: {name}\n{text}"


def test_a_task_that_fails_leaves_no_secret_in_output_ledger_or_state(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: Any, **_options: Any) -> None:
        signed = "https://host/x?X-Amz-Signature=swordfish-5"
        raise RuntimeError(f"http://{LOGIN}@host and {signed} failed for swordfish-1, swordfish-2 and swordfish-3")

    monkeypatch.setattr(fanout, "check_mlflow", lambda options: None)
    monkeypatch.setattr(fanout, "train_unit", fail)
    monkeypatch.setattr(fanout, "store_backbone", lambda *arguments, **options: None)
    status, printed = run(fanout_vtab, words, capsys)
    assert status == 1
    assert "Ray: joined ray://***@head:10001" in printed
    assert "tracking http://***@127.0.0.1:" in printed
    assert "own-light: FAILED: http://***@host and https://host/x?... failed for ***, *** and ***" in printed
    assert "RuntimeError: http://***@host and" in printed
    assert "http://***@127.0.0.1" in printed[printed.index("error: ") :]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    for path in files:
        assert_no_secret(str(path), path.read_bytes().decode(errors="replace"))
    ledger, state = (next(path for path in files if path.name == name) for name in ("ledger.jsonl", "own-light.json"))
    for kept in (ledger, state):
        assert "http://***@host and https://host/x?... failed" in kept.read_text(), "the error is stored, too"
    assert run(fanout_vtab, [*words, "--status"], capsys)[0] == 0


def test_an_mlflow_that_lets_nobody_in_leaves_no_secret(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, printed = run(fanout_vtab, words, capsys)
    assert status == 2
    assert "http://***@here: no, someone:***" in printed


def test_a_fault_of_the_code_leaves_no_secret(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fanout, "check_mlflow", lambda options: None)
    with pytest.raises(Exception, match="no, someone") as raised:
        leave_with(lambda: fanout_vtab.main(words))
    sys.excepthook(raised.type, raised.value, raised.tb)  # as the interpreter does
    captured = capsys.readouterr()
    assert "http://***@here" in captured.err
    assert_no_secret("what is printed", captured.out + captured.err)


def test_faults_of_a_command_line_repeat_no_secret(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words, "--tracking-uri", "postgresql://someone:swordfish-1@host/db?password=swordfish-5"]
    words += ["--data", "https://someone:swordfish-2@host/data", "--storage", "s3://KEY:swordfish-3@bucket"]
    words += ["--tasks", "dtd", "--backbone-weights", "s3://KEY:sword/swordfish-4@bucket/weights"]
    for job, options in ((fanout_vtab, words), (search_task, ["vtab-dtd", *words[: words.index("--tasks")]])):
        status, printed = run(job, options, capsys)
        assert status == 2
        assert "tracking URI 'postgresql://***@host/db?...'" in printed
        assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in printed
        assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in printed
    shards = ["dtd", "--from", "https://someone:swordfish-2@host/data", "--to", "s3://KEY:swordfish-3@bucket"]
    assert run(write_shards, shards, capsys)[0] == 2
    assert run(write_shards, ["dtd", "--form", f"http://{LOGIN}@host", "--to", "x"], capsys)[0] == 2


def test_the_last_lines_of_a_job_show_the_place_and_say_how_to_log_in(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row: Any = SimpleNamespace(task="own-light", status="done", champion=False, version=3)
    pending = f"MLflow at http://{LOGIN}@host did not answer"
    monkeypatch.setattr(fanout, "run_fanout", lambda options: Outcome(rows=[row], pending=pending))
    status, printed = run(fanout_vtab, words, capsys)
    assert status == 1
    assert "compare the runs: http://***@127.0.0.1:" in printed
    (pull,) = [line for line in printed.splitlines() if line.startswith("fetch a checkpoint: ")]
    (again,) = [line for line in printed.splitlines() if "--task-file" in line]
    assert "pull own-light --version 3  (" in pull
    for line in (pull, again):
        assert "--tracking-uri 'http://***@127.0.0.1:" in line
        assert line.endswith("set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)")


def test_help_shows_no_secret_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{LOGIN}@host:5000/100%25")
    monkeypatch.setenv("HST_STORAGE", "s3://KEY:swordfish-3@bucket")
    monkeypatch.setenv("HST_DATA", "https://host/x?sig=swordfish-5")
    for job in (fanout_vtab, search_task):
        with pytest.raises(SystemExit):
            job.main(["--help"])
        printed = " ".join(capsys.readouterr().out.split())
        assert_no_secret("--help", printed)
        for place in ("http://***@host:5000/100%25)", "s3://***@bucket)", "https://host/x?...)"):
            assert place in printed
