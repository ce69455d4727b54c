"""Default locations: absolute paths in the user's folders, never the current directory."""

import os
import re
from pathlib import Path

from pipeline.console.secrets import shown
from pipeline.storage.errors import StorageError

DEFAULT_CACHE_BYTES = 50 * 10**9
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def default_data() -> str:
    """Folder with one folder of raw data per task: $HST_DATA, else hst/data in the user's data folder."""
    return os.environ.get("HST_DATA") or str(_data_home() / "data")


def default_storage() -> str:
    """Folder or address for shards and checkpoints: $HST_STORAGE, else hst/storage in the user's data folder."""
    return os.environ.get("HST_STORAGE") or str(_data_home() / "storage")


def default_ledgers() -> str:
    """Folder of the ledgers from which records go to MLflow: always local, hst/ledgers in the user's data folder."""
    return str(_data_home() / "ledgers")


def default_tracking_uri() -> str:
    """MLflow's store: $MLFLOW_TRACKING_URI, else an sqlite file in the user's data folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_data_home() / 'mlflow.db'}"


def default_experiment() -> str:
    """MLflow's experiment for the runs: $MLFLOW_EXPERIMENT_NAME, else hst."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "hst"


def default_cache() -> Path:
    """Folder for copies of remote files, safe to delete at any time: $HST_CACHE, else hst in the user's cache folder.

    Raises:
        StorageError: The variable holds an address.
    """
    given = os.environ.get("HST_CACHE", "")
    if "://" in given:
        raise StorageError(f"HST_CACHE={shown(given)}: expected a local folder")
    return Path(given or _user_folder("XDG_CACHE_HOME", ".cache") / "hst").absolute()


def cache_limit_bytes() -> int:
    """Most bytes in the cache: $HST_CACHE_BYTES, a number or one with K, M, G or T (powers of 1000), else 50 GB.

    Raises:
        StorageError: The variable holds something else.
    """
    given = os.environ.get("HST_CACHE_BYTES", "").strip()
    if not given:
        return DEFAULT_CACHE_BYTES
    match = re.fullmatch(r"([0-9]+)([KMGT]?)", given.upper())
    if match is None:
        raise StorageError(f"HST_CACHE_BYTES={given}: expected a number of bytes like 20000000000, or 20G (K, M, G, T)")
    return int(match[1]) * _UNITS[match[2]]


def _data_home() -> Path:
    return _user_folder("XDG_DATA_HOME", ".local/share") / "hst"


def _user_folder(variable: str, below_home: str) -> Path:
    # The XDG specification says to ignore relative paths in these variables.
    given = os.environ.get(variable, "")
    return Path(given) if os.path.isabs(given) else Path.home() / below_home
