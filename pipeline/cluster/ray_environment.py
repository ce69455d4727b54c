"""What Ray reads from the environment when it is imported: prepare it before anything that imports ray."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

WORKER_ENVIRONMENT = {
    # Train workers keep the job's directory, print once, and the controller takes several reports a second.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # A range of workers is counted on nodes as they were up to 20 s ago: what cannot be placed is counted again then.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    # Threads that wait for each other spin by default: with another process on the cores that makes a small step take
    # ten to a hundred times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
    # webdataset: no pipe: addresses, no pickles.
    "WDS_SECURE": "1",
}


_token_folders: list[str] = []


@atexit.register
def remove_token() -> None:
    """What `prepare_ray_environment` made; to be called by a process that leaves by ``os._exit``, too."""
    while _token_folders:
        shutil.rmtree(_token_folders.pop(), ignore_errors=True)


def prepare_ray_environment() -> None:
    """Set what this process and the cluster that it may start need.

    With ``RAY_ADDRESS`` (set in submitted jobs) that cluster's own settings are left alone. Without it, a local
    cluster will be started on loopback, guarded by a fresh token that only this user can read and that is gone with
    this process.

    Raises:
        RuntimeError: ray is imported already and has read another environment.
    """
    os.environ.update(WORKER_ENVIRONMENT)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.environ.get("RAY_ADDRESS"):
        return
    if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
        raise RuntimeError("prepare_ray_environment() came after `import ray`, which had read the environment by then")
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else every port binds to all addresses
    # Ray Train starts many actors that take no CPU; Ray would warn of more of them than CPUs, into the job's output.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
    os.environ["RAY_AUTH_MODE"] = "token"
    if not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        folder = tempfile.mkdtemp(prefix="hst-ray-")  # mkdtemp: for this user alone
        _token_folders.append(folder)
        path = Path(folder) / "token"
        path.write_text(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
