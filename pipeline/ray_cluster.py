"""Join the Ray cluster that is there, or start a local one on loopback, guarded by a token, for the time of a job."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ray

WORKER_ENVIRONMENT = {
    # Train workers keep the job's directory, print once, and the controller takes several reports a second.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # webdataset: no pipe: addresses, no pickles.
    "WDS_SECURE": "1",
}


@contextlib.contextmanager
def connect() -> Iterator[None]:
    """Within: a connected driver. ``RAY_ADDRESS`` (set in submitted jobs) names a cluster; without it one is started here."""
    os.environ.update(WORKER_ENVIRONMENT)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    runtime_env = {"env_vars": WORKER_ENVIRONMENT}
    with contextlib.ExitStack() as stack:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(runtime_env=runtime_env, log_to_driver=False, logging_level="warning")
        else:
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else every port binds to all addresses
            _use_token(stack.enter_context(tempfile.TemporaryDirectory(prefix="hst-ray-")))
            ray.init(
                address="local",
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                runtime_env=runtime_env,
                log_to_driver=False,
                logging_level="warning",
            )
        stack.callback(ray.shutdown)
        yield


def _use_token(folder: str) -> None:
    """A fresh token that only this user can read, unless one is set already."""
    os.environ["RAY_AUTH_MODE"] = "token"
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path(folder) / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def living_nodes() -> list[dict[str, float]]:
    """Resources of each node: ``CPU``, ``GPU``, ``memory`` in bytes."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
