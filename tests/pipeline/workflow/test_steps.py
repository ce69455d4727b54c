import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.storage import files
from pipeline.training.stopped import Stopped
from pipeline.workflow import steps as steps_module
from pipeline.workflow.lease import Lease, Owner
from pipeline.workflow.steps import Steps, fingerprint


def test_a_step_is_worked_once_for_the_same_inputs(tmp_path: Path) -> None:
    calls = []

    def work(key: str, lease: Lease) -> dict[str, object]:
        calls.append(key)
        return {"answer": len(calls)}

    first = Steps(str(tmp_path), "vtab-dtd").run("train", {"seed": 0}, work)
    again = Steps(str(tmp_path), "vtab-dtd").run("train", {"seed": 0}, work)
    other = Steps(str(tmp_path), "vtab-dtd").run("train", {"seed": 1}, work)
    assert (first, again, other) == (({"answer": 1}, False), ({"answer": 1}, True), ({"answer": 2}, False))
    assert calls == [fingerprint("train", {"seed": 0}), fingerprint("train", {"seed": 1})]


def test_a_step_that_fails_leaves_no_record(tmp_path: Path) -> None:
    def fail(key: str, lease: Lease) -> dict[str, object]:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        Steps(str(tmp_path), "vtab-dtd").run("train", {}, fail)
    assert Steps(str(tmp_path), "vtab-dtd").find("train", fingerprint("train", {})) is None


def test_changed_sources_make_a_finished_step_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Steps(str(tmp_path), "vtab-dtd").run
    assert run("train", {}, lambda key, lease: {"n": 1}) == ({"n": 1}, False)
    monkeypatch.setattr(steps_module, "modules_sha256", lambda modules, alone: "other code")
    assert run("train", {}, lambda key, lease: {"n": 2}) == ({"n": 2}, False)


def test_a_driver_that_was_taken_over_commits_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    steps = Steps(str(tmp_path), "vtab-dtd", say=said.append)

    def work(key: str, lease: Lease) -> dict[str, object]:
        """Meanwhile, this driver having slept, another takes the step over and ends it."""
        owner = json.dumps(vars(Owner.of_this_process())).encode()
        assert files.put_once(steps.file(steps.name("train", key, ".lease/000002.json")), owner)
        record = {"fingerprint": key, "result": {"by": "the other"}}
        assert files.put_once(steps.file(steps.name("train", key, ".json")), json.dumps(record).encode())
        return {"by": "us"}

    assert steps.run("train", {}, work) == ({"by": "the other"}, True)
    assert "another driver took over while this one was silent" in said[0]


def test_two_drivers_do_not_work_on_one_step_at_once(tmp_path: Path) -> None:
    said: list[str] = []
    working = threading.Event()

    def slow(key: str, lease: Lease) -> dict[str, object]:
        working.set()
        time.sleep(1)
        return {"by": "the first"}

    def never(key: str, lease: Lease) -> dict[str, object]:
        raise AssertionError("two at once")

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(Steps(str(tmp_path), "vtab-dtd").run, "train", {}, slow)
        working.wait()
        second = Steps(str(tmp_path), "vtab-dtd", say=said.append).run("train", {}, never)
        assert (first.result(), second) == (({"by": "the first"}, False), ({"by": "the first"}, True))
    assert said == [
        f"vtab-dtd: train: process {os.getpid()} on {socket.gethostname()} is working on it; waiting for it to end"
    ]


def test_waiting_for_another_driver_ends_with_a_stop(tmp_path: Path) -> None:
    stop = threading.Event()

    def work(key: str, lease: Lease) -> dict[str, object]:
        threading.Timer(0.3, stop.set).start()
        with pytest.raises(Stopped, match="stopped while another driver had the step train"):
            Steps(str(tmp_path), "vtab-dtd", stop=stop).run("train", {}, lambda key, lease: {})
        return {}

    Steps(str(tmp_path), "vtab-dtd").run("train", {}, work)


def test_what_is_done_alone_is_done_by_one_driver_at_a_time(tmp_path: Path) -> None:
    stop = threading.Event()
    with Steps(str(tmp_path), "vtab-dtd").alone("shards"):
        threading.Timer(0.3, stop.set).start()
        with (
            pytest.raises(Stopped, match="another driver worked on shards"),
            Steps(str(tmp_path), "vtab-dtd", stop=stop).alone("shards"),
        ):
            raise AssertionError("two at once")
    with Steps(str(tmp_path), "vtab-dtd").alone("shards"):
        pass


def test_a_record_of_another_fingerprint_is_refused(tmp_path: Path) -> None:
    steps = Steps(str(tmp_path), "vtab-dtd")
    key = fingerprint("train", {})
    path = Path(steps.file(steps.name("train", key, ".json")))
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"fingerprint": "0" * 64, "result": {}}))
    with pytest.raises(ValueError, match="move the file away"):
        steps.find("train", key)
