"""Start and stop the local stack: an MLflow server and a Ray head, on loopback; Ray is protected by a token.

    python -m infra.stack up       start what is not running; print all addresses
    python -m infra.stack ui       start only the MLflow server; print its address
    python -m infra.stack status   print what runs and where; exit status 1 if something does not run
    python -m infra.stack down     end what this stack started, and nothing else
    . "$(python -m infra.stack env)"    point a shell at the stack: ray job submit, hst-registry, mlflow

State (logs, database, artifacts, token) is in $HST_STATE, by default hst/stack in $XDG_DATA_HOME or ~/.local/share.
Each stack needs a folder of its own. Services use their usual ports if free, else any free ports; set
HST_MLFLOW_PORT, HST_RAY_PORT or HST_DASHBOARD_PORT to require a port. HST_STACK_TIMEOUT is the number of seconds in
which a service must answer (90).

Every process of the stack has a mark in its environment. `down` ends processes with the mark and their descendants,
by pid; `ray stop` would end every Ray on the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil

from infra.processes import MARK, choose_port, end, free_port, head_process, open_to_others, processes_of
from infra.state import Service, StackError, State, client_environment, default_state, past_proxies, write_env

REPOSITORY = Path(__file__).resolve().parent.parent
SERVICES = ("mlflow", "ray")
RAY_ENVIRONMENT = {
    # Ray warns in every job's output when it has four times this many workers. The default is the number of CPUs, but
    # Ray Train starts many actors that use no CPU.
    "RAY_worker_maximum_startup_concurrency": "16",
    # A stopped job needs time to save its training; Ray's default is 3.
    "RAY_JOB_STOP_WAIT_TIME_S": "30",
}
STARTED_FROM = f"{REPOSITORY} with {sys.executable}"


def plan_mlflow(state: State) -> tuple[Service, list[str]]:
    """The MLflow server and its command. Artifacts go through the server, so that a client needs only its URL."""
    port = choose_port("HST_MLFLOW_PORT", 5000)
    folder = state.root / "mlflow"
    folder.mkdir(exist_ok=True)
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
        "--backend-store-uri": f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination": str(folder / "artifacts"),
    }
    url, log = f"http://127.0.0.1:{port}", str(state.root / "mlflow.log")
    command = [sys.executable, "-m", "mlflow", "server", *(word for pair in options.items() for word in pair)]
    return Service(name="mlflow", pid=0, create_time=0.0, url=url, log=log), command


def plan_ray(state: State) -> tuple[Service, list[str]]:
    """The Ray head and its command."""
    port, dashboard = choose_port("HST_RAY_PORT", 6379), choose_port("HST_DASHBOARD_PORT", 8265)
    # The path of a Unix socket is limited to about 100 characters, too few for a folder deep in a user's home.
    temp_dir = tempfile.mkdtemp(prefix="hst-ray-", dir="/tmp")
    options = {
        "--node-ip-address": "127.0.0.1",
        "--port": str(port),
        "--dashboard-host": "127.0.0.1",
        "--dashboard-port": str(dashboard),
        "--temp-dir": temp_dir,
        # The defaults of the first two are fixed, so two stacks would collide; 0 lets the system choose worker ports.
        "--ray-client-server-port": str(free_port()),
        "--dashboard-agent-listen-port": str(free_port()),
        "--min-worker-port": "0",
        "--max-worker-port": "0",
    }
    ray = str(Path(sys.executable).parent / "ray")
    service = Service(
        name="ray",
        pid=0,
        create_time=0.0,
        url=f"http://127.0.0.1:{dashboard}",
        log=str(state.root / "ray.log"),
        address=f"127.0.0.1:{port}",
        temp_dir=temp_dir,
    )
    return service, [ray, "start", "--head", "--block", *(word for pair in options.items() for word in pair)]


PLANS = {"mlflow": plan_mlflow, "ray": plan_ray}
READY_PATHS = {"mlflow": "/health", "ray": "/api/jobs/"}


def start(state: State, name: str) -> Service:
    """Starts a service and waits until it answers.

    Raises:
        StackError: The service ended, did not answer in time (the message has the last lines of the log), or listens
            beyond loopback.
    """
    service, command = PLANS[name](state)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    environment |= client_environment(state) | past_proxies(os.environ) | RAY_ENVIRONMENT
    environment |= {
        MARK: state.mark(name),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 10 processes and 1.6 GB with it, 2 and 490 MB without
        # Jobs must use this `python`.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",  # a job's lines appear as they are printed
    }
    with open(service.log, "w") as log:
        # Jobs run in the folder where the Ray head was started, so `ray job submit -- python jobs/...` finds the
        # script in the repository.
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C in the terminal does not reach it
        )
    created = psutil.Process(process.pid).create_time()
    service = dataclasses.replace(service, pid=process.pid, create_time=created, started_from=STARTED_FROM)
    state.save(service)
    try:
        wait_until_ready(state, service, process)
        outside = open_to_others(processes_of(state, service))
        if outside:
            raise StackError(f"{name} listens beyond loopback, at {', '.join(outside)}; it was stopped again")
    except BaseException:  # also Ctrl-C: leave nothing half-started behind
        end(state, service, keep_files=True)
        state.forget(name)
        raise
    return service


def wait_until_ready(state: State, service: Service, process: subprocess.Popen[bytes]) -> None:
    seconds = float(os.environ.get("HST_STACK_TIMEOUT", "90"))
    headers = {"Authorization": f"Bearer {state.token.read_text()}"} if service.name == "ray" else {}
    request = urllib.request.Request(service.url + READY_PATHS[service.name], headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach our loopback
    deadline = time.monotonic() + seconds
    last = "no answer"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            last = f"it ended with status {process.returncode}"
            break
        try:
            with opener.open(request, timeout=5):
                return
        except OSError as error:  # includes URLError and timeouts
            last = str(error)
        time.sleep(0.2)
    else:
        last = f"not ready after {seconds:g} s ({last}); HST_STACK_TIMEOUT allows more"
    lines = Path(service.log).read_text(errors="replace").splitlines()[-15:]
    tail = "".join(f"\n    {line}" for line in lines)
    logs = service.log + (f" and {service.temp_dir}/session_latest/logs" if service.temp_dir else "")
    raise StackError(f"{service.name} did not start: {last}. Read {logs}; the last lines:{tail}")


def up(state: State, names: Sequence[str]) -> None:
    """Starts the named services that do not run, and prints a line with the address of each.

    Raises:
        StackError: A service does not start, or Ray runs with the code and packages of another clone.
    """
    state.create()
    with state.locked():
        for name in names:
            service = state.load(name)
            if service is not None and head_process(service) is None:
                end(state, service)  # its head was killed: its remaining processes would be in the way
                state.forget(name)
                service = None
            if service is not None and name == "ray" and service.started_from != STARTED_FROM:
                raise StackError(
                    f"ray runs already, started from {service.started_from}, not from {STARTED_FROM}: "
                    f"end it with `make down`, or keep both by naming another folder in HST_STATE"
                )
            word = "runs" if service else "started"
            service = service or start(state, name)
            write_env(state)
            print(f"{name:<7} {word:<8} {service.url}   log {service.log}", flush=True)


def down(state: State) -> None:
    """Ends every service of the stack."""
    if not state.exists():
        print(f"no stack in {state.root}")
        return
    with state.locked():
        for name in reversed(SERVICES):
            service = state.load(name)
            if service is None:
                print(f"{name:<7} not running")
                continue
            count = end(state, service)
            state.forget(name)
            print(f"{name:<7} ended ({count} processes)", flush=True)
        state.env.unlink(missing_ok=True)


def status(state: State) -> bool:
    """Prints what runs; returns whether every service runs, on loopback only."""
    well = True
    for name in SERVICES:
        service = state.load(name)
        if service is None or head_process(service) is None:
            reason = f" (ended, but not by `down`; log {service.log})" if service else ""
            print(f"{name:<7} not running{reason}")
            well = False
            continue
        processes = processes_of(state, service)
        outside = open_to_others(processes)
        well = well and not outside
        listens = f"listens beyond loopback at {', '.join(outside)}" if outside else "loopback only"
        print(f"{name:<7} {service.url}   {len(processes)} processes, {listens}   log {service.log}")
    return well


def main(arguments: Sequence[str] | None = None) -> int:
    """Does one action and returns the exit status."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m infra.stack",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=["up", "ui", "status", "down", "env"])
    action = parser.parse_args(arguments).action
    state = default_state()
    try:
        if action == "up":
            up(state, SERVICES)
            print(f'\nPoint a shell at it:  . "{state.env}"')
        elif action == "ui":
            up(state, ["mlflow"])
        elif action == "down":
            down(state)
        elif action == "env":
            if not state.env.exists():
                raise StackError(f"no stack in {state.root}: start it with `up`, or name another in HST_STATE")
            print(state.env)
        else:
            return 0 if status(state) else 1
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
