"""Environment variables that Ray reads when it is imported. Set them before importing anything that imports ray."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

WORKER_ENVIRONMENT = {
    # Train workers stay in the job's directory and print once; the controller takes several reports a second.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Ray sizes a range of workers by a list of nodes up to 20 s old. A group that cannot be placed is sized again then.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    # By default, waiting threads spin. If another process uses the cores, a small step then takes ten to a hundred
    # times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
    # webdataset: no pipe: addresses, no pickles.
    "WDS_SECURE": "1",
}


_token_folders: list[str] = []


@atexit.register
def remove_token() -> None:
    """Removes the token of `prepare_ray_environment`; a process that leaves with ``os._exit`` must call this itself."""
    while _token_folders:
        shutil.rmtree(_token_folders.pop(), ignore_errors=True)


def prepare_ray_environment() -> None:
    """Sets the variables for this process and for the cluster that it may start.

    With ``RAY_ADDRESS`` (set in submitted jobs) the settings of that cluster stay unchanged. Without it, the job will
    start a local cluster on loopback. A fresh token protects it; only this user can read the token, and it is removed
    when this process ends.

    Raises:
        RuntimeError: ray was imported earlier and has read another environment.
    """
    os.environ.update(WORKER_ENVIRONMENT)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A ray:// address is tried three times, by default for 5, 10 and 15 s.
    os.environ.setdefault("RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S", "4")
    os.environ.setdefault("RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S", "4")
    if os.environ.get("RAY_ADDRESS"):
        return
    if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
        raise RuntimeError("call prepare_ray_environment() before `import ray`, which reads the environment")
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # otherwise every port binds to all addresses
    # Ray Train starts many actors that take no CPU. Without this, Ray prints a warning when they outnumber the CPUs.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
    os.environ["RAY_AUTH_MODE"] = "token"
    if not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        folder = tempfile.mkdtemp(prefix="hst-ray-")  # readable by this user only
        _token_folders.append(folder)
        path = Path(folder) / "token"
        path.write_text(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
