"""The folder of a local stack: its id, token and services, and the file that points a shell at it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1,localhost"


class StackError(ValueError):
    """The stack cannot run. The message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """How to find a started service again; written to ``<state>/<name>.json``."""

    name: str
    """``mlflow`` or ``ray``."""
    pid: int
    """Id of the head process; the service's other processes descend from it or have the stack's mark."""
    create_time: float
    """Start of the head process in seconds since the epoch: another process may have its pid later."""
    url: str
    """Address of the page for people, which answers when the service is ready."""
    log: str
    """File to which the head process writes."""
    address: str = ""
    """Ray only: host:port at which a driver joins."""
    temp_dir: str = ""
    """Ray only: folder of its sessions, which is removed when Ray is ended."""
    started_from: str = ""
    """Repository and interpreter whose code the jobs run."""


@dataclass(frozen=True)
class State:
    """The folder of one stack."""

    root: Path

    @property
    def token(self) -> Path:
        """The file with Ray's token, readable by its owner only."""
        return self.root / "ray-token"

    @property
    def env(self) -> Path:
        """The file to source to point a shell at the stack."""
        return self.root / "env"

    def mark(self, name: str) -> str:
        """The mark that every process of the service has in its environment."""
        return f"{(self.root / 'id').read_text()}-{name}"

    def exists(self) -> bool:
        return (self.root / "id").exists()

    def create(self) -> None:
        """Makes the folder, its id and its token, unless they exist."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
        for path, value in ((self.root / "id", secrets.token_hex(8)), (self.token, secrets.token_hex(32))):
            if not path.exists():
                with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                    file.write(value)

    def load(self, name: str) -> Service | None:
        path = self.root / f"{name}.json"
        return Service(**json.loads(path.read_text())) if path.exists() else None

    def save(self, service: Service) -> None:
        partial = self.root / f"{service.name}.json.tmp"
        partial.write_text(json.dumps(asdict(service), indent=2) + "\n")
        partial.replace(self.root / f"{service.name}.json")

    def forget(self, name: str) -> None:
        (self.root / f"{name}.json").unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder against another `up` or `down`, after waiting for a running one."""
        with open(self.root / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def default_state() -> State:
    """The folder in HST_STATE, else hst/stack in the user's data folder."""
    given = os.environ.get("XDG_DATA_HOME", "")
    # As in pipeline/storage/locations.py: the XDG specification says to ignore a relative path there.
    data = Path(given) if os.path.isabs(given) else Path.home() / ".local" / "share"
    return State(Path(os.environ.get("HST_STATE") or data / "hst" / "stack").expanduser().absolute())


def client_environment(state: State) -> dict[str, str]:
    """Environment variables for clients of the stack, in shells and in jobs."""
    environment = {
        "HST_STATE": str(state.root),
        "HST_STORAGE": str(state.root / "storage"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(state.token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # otherwise Ray binds its ports to all addresses
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    mlflow = state.load("mlflow")
    return environment | ({"MLFLOW_TRACKING_URI": mlflow.url} if mlflow else {})


def past_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY in both spellings with loopback, which a proxy cannot reach, put before the given value."""
    given = environment.get("no_proxy") or environment.get("NO_PROXY")
    value = f"{LOOPBACK},{given}" if given else LOOPBACK
    return {"NO_PROXY": value, "no_proxy": value}


def write_env(state: State) -> None:
    """Writes the file that points a shell at the started services."""
    variables = client_environment(state)
    ray = state.load("ray")
    if ray is not None:
        variables |= {"RAY_ADDRESS": ray.address, "RAY_API_SERVER_ADDRESS": ray.url}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items())]
    lines += [
        "unset RAY_AUTH_TOKEN\n",  # it would override the token in the file
        'export no_proxy="${no_proxy:-${NO_PROXY:-}}"\n',  # as in past_proxies
        f'export no_proxy="{LOOPBACK}${{no_proxy:+,$no_proxy}}"\n',
        'export NO_PROXY="$no_proxy"\n',
    ]
    state.env.write_text("".join(lines))
