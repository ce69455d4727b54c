"""The local stack starts on loopback, says why if it cannot, and ends only its own processes."""

from __future__ import annotations

import dataclasses
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra import processes, stack
from infra.state import Service, StackError, State, default_state, write_env

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def state(tmp_path: Path) -> State:
    state = State(tmp_path / "state")
    state.create()
    return state


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for child in started:
        child.kill()
        child.wait()


def service_of(child: subprocess.Popen[bytes], **changes: float | str) -> Service:
    service = Service(
        name="ray",
        pid=child.pid,
        create_time=psutil.Process(child.pid).create_time(),
        url="http://127.0.0.1:1",
        log="/dev/null",
    )
    return dataclasses.replace(service, **changes)  # type: ignore[arg-type]


def sleeper(mark: str | None = None) -> subprocess.Popen[bytes]:
    environment = os.environ | ({processes.MARK: mark} if mark else {})
    return subprocess.Popen(["sleep", "300"], env=environment, start_new_session=True)


def test_token_and_folder_are_for_their_owner_only_and_stay_the_same(state: State) -> None:
    assert stat.S_IMODE(state.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(state.token.stat().st_mode) == 0o600
    token, mark = state.token.read_text(), state.mark("ray")
    state.create()
    assert (state.token.read_text(), state.mark("ray")) == (token, mark)
    assert len(token) == 64


def test_end_ends_the_head_its_descendants_and_what_carries_the_mark_and_nobody_else(
    state: State, children: list[subprocess.Popen[bytes]]
) -> None:
    # The head has a child in another session and without the mark, which is how a Ray worker looks from outside.
    head = subprocess.Popen(["sh", "-c", "env -u HST_STACK_MARK setsid sleep 300 & wait"], start_new_session=True)
    orphan, stranger, other_stack = sleeper(state.mark("ray")), sleeper(), sleeper("another-ray")
    children += [head, orphan, stranger, other_stack]
    time.sleep(0.3)
    inner = psutil.Process(head.pid).children(recursive=True)
    assert inner
    assert processes.end(state, service_of(head)) == 2 + len(inner)
    assert head.wait(1) is not None
    assert orphan.wait(1) is not None
    assert not any(processes.is_alive(process) for process in inner)
    assert stranger.poll() is None
    assert other_stack.poll() is None


def test_a_process_that_ignores_sigterm_is_killed(state: State, children: list[subprocess.Popen[bytes]]) -> None:
    head = subprocess.Popen(
        [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(99)"]
    )
    children.append(head)
    time.sleep(0.3)
    processes.end(state, service_of(head), patience=0.3)
    assert head.wait(1) == -9


def test_a_pid_that_is_anothers_by_now_is_left_alone(state: State, children: list[subprocess.Popen[bytes]]) -> None:
    stranger = sleeper()
    children.append(stranger)
    stale = service_of(stranger, create_time=psutil.Process(stranger.pid).create_time() - 60)
    assert processes.head_process(stale) is None
    assert processes.end(state, stale) == 0
    assert stranger.poll() is None


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("HST_MLFLOW_PORT", str(port))
        with pytest.raises(StackError, match=rf"port {port} \(HST_MLFLOW_PORT\) is taken"):
            processes.choose_port("HST_MLFLOW_PORT", 5000)
        monkeypatch.setenv("HST_MLFLOW_PORT", "http")
        with pytest.raises(StackError, match="HST_MLFLOW_PORT is 'http': expected a port"):
            processes.choose_port("HST_MLFLOW_PORT", 5000)
        monkeypatch.delenv("HST_MLFLOW_PORT")
        assert processes.choose_port("HST_MLFLOW_PORT", port) != port


@pytest.mark.parametrize(
    ("address", "is_open"), [("0.0.0.0", True), ("127.0.0.1", False), ("::", True), ("::1", False)]
)
def test_a_socket_beyond_loopback_is_seen(address: str, is_open: bool) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as listening:
        try:
            listening.bind((address, 0))
        except OSError:
            pytest.skip(f"this machine has no {address}")
        listening.listen()
        port = listening.getsockname()[1]
        found = [text for text in processes.open_to_others([psutil.Process()]) if f":{port} " in text]
        assert bool(found) is is_open


def plan(command: list[str], state: State) -> tuple[Service, list[str]]:
    service = Service(name="ray", pid=0, create_time=0.0, url="http://127.0.0.1:1", log=str(state.root / "ray.log"))
    return service, command


def test_a_service_that_ends_at_once_names_its_log_and_last_lines(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stack.PLANS, "ray", lambda state: plan(["sh", "-c", "echo no memory left; exit 3"], state))
    with pytest.raises(
        StackError, match=r"ray did not start: it ended with status 3. Read .*ray\.log; .*\n.*no memory"
    ):
        stack.up(state, ["ray"])
    assert state.load("ray") is None


def test_a_service_that_does_not_answer_is_ended(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stack.PLANS, "ray", lambda state: plan(["sleep", "300"], state))
    monkeypatch.setenv("HST_STACK_TIMEOUT", "0.5")
    with pytest.raises(StackError, match=r"not ready after 0\.5 s .*HST_STACK_TIMEOUT allows more"):
        stack.up(state, ["ray"])
    mark = state.mark("ray")
    assert not [process for process in psutil.process_iter() if has_mark(process, mark)]


def test_ray_of_another_clone_is_not_taken_for_ours(
    state: State, children: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = sleeper(state.mark("ray"))
    children.append(head)
    state.save(service_of(head, started_from="/elsewhere with /elsewhere/.venv/bin/python"))
    with pytest.raises(StackError, match=r"started from /elsewhere with .*make down.*HST_STATE"):
        stack.up(state, ["ray"])
    assert head.poll() is None


def test_what_a_killed_head_left_is_ended_before_a_new_start(
    state: State, children: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, orphan = sleeper(state.mark("ray")), sleeper(state.mark("ray"))
    children += [head, orphan]
    state.save(service_of(head))
    head.kill()
    head.wait()
    monkeypatch.setitem(stack.PLANS, "ray", lambda state: plan(["false"], state))
    with pytest.raises(StackError, match="it ended with status 1"):
        stack.up(state, ["ray"])
    assert orphan.wait(1) is not None


def has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(processes.MARK) == mark
    except psutil.Error:
        return False


def test_the_env_file_survives_a_shell_whatever_the_folder_is_called(tmp_path: Path) -> None:
    state = State(tmp_path / "it's a $HOME")
    state.create()
    write_env(state)
    script = '. "$1" && printf \'%s|%s\' "$HST_STORAGE" "${RAY_AUTH_TOKEN-unset}"'
    shell = ["env", "RAY_AUTH_TOKEN=other", "sh", "-c", script, "sh", str(state.env)]
    assert subprocess.check_output(shell, text=True) == f"{state.root}/storage|unset"


@pytest.mark.parametrize("given", [{}, {"NO_PROXY": "intranet"}, {"no_proxy": "intranet"}], ids=str)
def test_loopback_goes_past_a_proxy_in_shells_and_services(
    given: dict[str, str], state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = "127.0.0.1,localhost,intranet" if given else "127.0.0.1,localhost"
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (given | {"HTTP_PROXY": "http://proxy:1"}).items():
        monkeypatch.setenv(name, value)
    show = 'echo "$NO_PROXY|$no_proxy"'
    write_env(state)
    shell = subprocess.check_output(["sh", "-uc", f'. "$1"; {show}', "sh", str(state.env)], text=True)
    assert shell == f"{expected}|{expected}\n"
    monkeypatch.setitem(stack.PLANS, "ray", lambda state: plan(["sh", "-c", show], state))
    with pytest.raises(StackError, match="it ended with status 0") as error:
        stack.up(state, ["ray"])
    assert f"{expected}|{expected}" in str(error.value)


def test_rays_workers_do_not_make_it_warn_in_every_job(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    show = "env | grep RAY_worker_maximum"
    monkeypatch.setitem(stack.PLANS, "ray", lambda state: plan(["sh", "-c", show], state))
    with pytest.raises(StackError, match="RAY_worker_maximum_startup_concurrency=16"):
        stack.up(state, ["ray"])


def test_a_relative_folder_of_the_user_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HST_STATE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "data")
    assert default_state().root == tmp_path / ".local/share/hst/stack"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_state().root == Path("/data/hst/stack")


def test_down_and_status_without_a_stack_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HST_STATE", str(tmp_path / "none"))
    assert stack.main(["down"]) == 0
    assert "no stack in" in capsys.readouterr().out
    assert stack.main(["status"]) == 1
    assert stack.main(["env"]) == 1
    assert "start it with `up`" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def run_stack(action: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.stack", action]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150)


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_a_job_finds_its_script_on_the_stack_without_a_working_dir_and_down_ends_all(tmp_path: Path) -> None:
    """`ray job submit -- python jobs/...` works from any folder, and after `down` nothing of the stack is left."""
    environment = os.environ | {"HST_STATE": str(tmp_path / "state"), "HST_STORAGE": ""}
    for name in ("RAY_ADDRESS", "HST_MLFLOW_PORT", "HST_RAY_PORT", "HST_DASHBOARD_PORT"):
        environment.pop(name, None)
    try:
        up = run_stack("up", environment)
        assert up.returncode == 0, up.stderr
        again = run_stack("up", environment)
        assert again.stdout.count("runs") == 2, again.stdout
        status = run_stack("status", environment)
        assert status.returncode == 0, status.stdout
        assert status.stdout.count("loopback only") == 2
        state = State(tmp_path / "state")
        mlflow, ray = state.load("mlflow"), state.load("ray")
        assert mlflow is not None
        assert ray is not None

        binaries = Path(sys.executable).parent
        submit = f". '{state.env}' && '{binaries}/ray' job submit"
        job = (
            "python jobs/make_demo_data.py --help && python -c 'import os; print(os.environ[\"MLFLOW_TRACKING_URI\"])'"
        )
        result = subprocess.run(
            ["sh", "-c", f'{submit} -- sh -c "$1"', "sh", job],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "usage: make_demo_data.py" in result.stdout
        assert mlflow.url in result.stdout

        refused = subprocess.run(
            ["sh", "-c", f". '{state.env}' && RAY_AUTH_TOKEN={'0' * 64} '{binaries}/ray' job list"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert refused.returncode != 0

        running = processes.processes_of(state, mlflow) | processes.processes_of(state, ray)
        assert len(running) > 5
        assert processes.open_to_others(running) == []
    finally:
        down = run_stack("down", environment)
    assert down.returncode == 0, down.stderr
    assert not any(processes.is_alive(process) for process in running)
    assert not Path(ray.temp_dir).exists()
    assert state.load("ray") is None
