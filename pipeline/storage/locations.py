"""Where things are kept when nobody says otherwise: absolute, under the user's folders, never the current directory."""

import os
import re
from pathlib import Path

from pipeline.storage.errors import StorageError

DEFAULT_CACHE_BYTES = 50 * 10**9
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def default_data() -> str:
    """The folder that holds a folder for each task's raw data: $HST_DATA, else hst/data in the user's data folder."""
    return os.environ.get("HST_DATA") or str(_data_home() / "data")


def default_storage() -> str:
    """Where shards and checkpoints are written: $HST_STORAGE, else hst/storage in the user's data folder."""
    return os.environ.get("HST_STORAGE") or str(_data_home() / "storage")


def default_ledgers() -> str:
    """The folder of the ledgers that MLflow is told from: always a local one, hst/ledgers in the user's data folder."""
    return str(_data_home() / "ledgers")


def default_tracking_uri() -> str:
    """MLflow's store: $MLFLOW_TRACKING_URI, else an sqlite file in the user's data folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_data_home() / 'mlflow.db'}"


def default_cache() -> Path:
    """Copies of remote files, safe to delete at any time: $HST_CACHE, else hst in the user's cache folder.

    Raises:
        StorageError: the variable holds an address.
    """
    given = os.environ.get("HST_CACHE", "")
    if "://" in given:
        raise StorageError(f"HST_CACHE={given}: expected a local folder")
    return Path(given or _user_folder("XDG_CACHE_HOME", ".cache") / "hst").absolute()


def cache_limit_bytes() -> int:
    """How much the cache may hold: $HST_CACHE_BYTES, bytes or a number with K, M, G or T (powers of 1000), else 50 GB.

    Raises:
        StorageError: the variable holds something else.
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
    # The XDG specification says that a relative path in these variables is to be ignored.
    given = os.environ.get(variable, "")
    return Path(given) if os.path.isabs(given) else Path.home() / below_home
