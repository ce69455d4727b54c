"""Only one of several drivers works. One that is dead or silent for too long is taken over and then commits nothing."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage import files, s3
from pipeline.storage.errors import PassingError
from pipeline.workflow import lease
from pipeline.workflow.lease import LeaseLostError, Owner, hold
from tests.pipeline.conftest import Moto
from tests.pipeline.fault_proxy import Fault

# Holds the lease of a folder; at a line on stdin, says whether it may still commit.
HOLDER = """
import sys, time
from pipeline.workflow import lease
lease.EXPIRY_S, lease.HEARTBEAT_S = 2.0, 0.1
with lease.hold(sys.argv[1]) as held:
    print(held.attempt, flush=True)
    sys.stdin.readline()
    try:
        held.check()
        print("commits", flush=True)
    except lease.LeaseLostError:
        print("lost", flush=True)
"""


@pytest.fixture
def other_driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lease")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(lease, "EXPIRY_S", 2.0)
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.1)
    return str(tmp_path / "lease")


def test_attempts_are_counted_and_a_lease_that_was_given_back_is_free(folder: str) -> None:
    for attempt in (1, 2, 3):
        with hold(folder) as held:
            assert held is not None
            assert held.attempt == attempt
            held.check()


def test_the_files_of_old_attempts_are_removed(folder: str) -> None:
    for _ in range(4):
        with hold(folder):
            pass
    assert {name.partition(".")[0] for name in files.list_prefix(folder)} == {"000003", "000004"}


def test_who_comes_second_waits_until_the_first_is_done(folder: str) -> None:
    order: list[str] = []
    told: list[Owner] = []

    def second() -> None:
        with hold(folder, waiting=told.append):
            order.append("second")

    with hold(folder) as held:
        assert held is not None
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(lease.EXPIRY_S * 1.5)  # longer than a silent owner could keep the lease
        held.check()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert told == [held.owner]


def test_waiting_ends_when_the_driver_is_told_to_stop(folder: str) -> None:
    stop = threading.Event()
    with hold(folder):
        threading.Timer(0.2, stop.set).start()
        with hold(folder, stop=stop) as held:
            assert held is None


def test_a_killed_process_of_this_machine_is_taken_over_at_once(
    folder: str, other_driver: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY_S", 1e9)
    other_driver.send_signal(signal.SIGKILL)
    other_driver.wait()
    with hold(folder) as held:
        assert held is not None
        assert held.attempt == 2


def test_a_process_that_was_asleep_finds_that_it_was_taken_over(
    folder: str, other_driver: subprocess.Popen[str]
) -> None:
    other_driver.send_signal(signal.SIGSTOP)
    with hold(folder) as held:
        assert held is not None
        assert held.attempt == 2
        other_driver.send_signal(signal.SIGCONT)
        out, _ = other_driver.communicate("go on\n", timeout=60)
        assert out == "lost\n"
        held.check()


def test_a_living_process_keeps_its_lease(folder: str, other_driver: subprocess.Popen[str]) -> None:
    stop = threading.Event()
    threading.Timer(lease.EXPIRY_S * 1.5, stop.set).start()
    with hold(folder, stop=stop) as held:
        assert held is None
    out, _ = other_driver.communicate("go on\n", timeout=60)
    assert out == "commits\n"


def test_the_number_of_a_dead_process_that_another_has_now_keeps_nobody_out(folder: str) -> None:
    owner = dataclasses.replace(Owner.of_this_process(), started=1)
    files.write_bytes(f"{folder}/000001.json", json.dumps(vars(owner)).encode())
    with hold(folder) as held:
        assert held is not None


def test_an_owner_on_another_machine_is_gone_only_when_it_is_silent(folder: str) -> None:
    owner = dataclasses.replace(Owner.of_this_process(), machine="another", pid=2**22 + 1)
    files.write_bytes(f"{folder}/000001.json", json.dumps(vars(owner)).encode())
    started = time.monotonic()
    with hold(folder) as held:
        assert held is not None
    assert time.monotonic() - started >= lease.EXPIRY_S


def test_of_many_that_want_it_at_once_one_has_it_at_a_time(folder: str) -> None:
    inside = threading.Semaphore(1)
    attempts: list[int] = []

    def work() -> None:
        with hold(folder) as held:
            assert held is not None
            assert inside.acquire(blocking=False), "two at once"
            attempts.append(held.attempt)
            time.sleep(0.01)
            inside.release()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(attempts) == list(range(1, 7))


def test_a_lease_on_s3_is_the_same(s3_folder: Path, folder: str) -> None:
    s3 = "s3://bucket"
    with hold(f"{s3}/lease") as held:
        assert held is not None
        stop = threading.Event()
        stop.set()
        with hold(f"{s3}/lease", stop=stop) as second:
            assert second is None
        files.put_once(f"{s3}/lease/000002.json", b"{}")
        with pytest.raises(LeaseLostError, match="attempt 1 of process"):
            held.check()
        assert held.lost.wait(10)


def test_a_store_that_hangs_once_costs_no_lease(folder: str, moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "BRIEF_TIMEOUT_S", 0.3)
    with hold("s3://bucket/lease") as held:
        assert held is not None
        moto.proxy.plan = [Fault("stall")]  # for the next heartbeat
        while moto.proxy.plan:
            time.sleep(0.01)
        stop = threading.Event()
        threading.Timer(lease.EXPIRY_S * 2, stop.set).start()
        with hold("s3://bucket/lease", stop=stop) as second:
            assert second is None
        held.check()


def test_an_owner_who_is_not_told_that_it_has_the_lease_finds_itself(
    folder: str, moto: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY_S", 1e9)
    moto.proxy.methods, moto.proxy.plan = {"PUT"}, [Fault("lose")]
    stop = threading.Event()
    threading.Timer(20, stop.set).start()
    with hold("s3://bucket/unanswered", stop=stop) as held:
        assert held is not None, "it waited for itself"
        assert held.attempt == 1
    assert [request.status for request in moto.proxy.requests if request.method == "PUT"][:2] == [200, 412]


def test_one_who_slept_while_others_went_on_does_not_take_a_number_that_is_free_again(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        with hold(folder):
            pass
    before = lease._last(folder)
    real, asleep = lease._last, [True]

    def slow(uri: str) -> object:
        if asleep.pop() if asleep else False:
            assert before is not None
            return 1, before[1], before[2]  # as it was read long ago
        return real(uri)

    monkeypatch.setattr(lease, "_last", slow)
    with hold(folder) as held:
        assert held is not None
        assert held.attempt == 5


def test_storage_that_is_away_for_a_moment_keeps_nobody_from_waiting(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, faults = lease._last, [PassingError("503")] * 2

    def flaky(uri: str) -> object:
        if faults:
            raise faults.pop()
        return real(uri)

    monkeypatch.setattr(lease, "_last", flaky)
    with hold(folder) as held:
        assert held is not None


def test_the_owner_is_named_for_people() -> None:
    owner = Owner.of_this_process()
    assert str(owner) == f"process {os.getpid()} on {owner.host}"
