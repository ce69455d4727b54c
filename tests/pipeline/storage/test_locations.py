"""Default locations."""

from pathlib import Path

import pytest

from pipeline.storage import locations
from pipeline.storage.errors import StorageError

VARIABLES = (
    "HST_DATA",
    "HST_STORAGE",
    "HST_CACHE",
    "HST_CACHE_BYTES",
    "MLFLOW_TRACKING_URI",
    "XDG_DATA_HOME",
    "XDG_CACHE_HOME",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_defaults_are_absolute_and_under_the_users_folders(home: Path) -> None:
    assert locations.default_data() == f"{home}/.local/share/hst/data"
    assert locations.default_storage() == f"{home}/.local/share/hst/storage"
    assert locations.default_ledgers() == f"{home}/.local/share/hst/ledgers"
    assert locations.default_tracking_uri() == f"sqlite:///{home}/.local/share/hst/mlflow.db"
    assert locations.default_cache() == home / ".cache/hst"


def test_asking_makes_no_folder(home: Path) -> None:
    test_defaults_are_absolute_and_under_the_users_folders(home)
    assert list(home.iterdir()) == []


def test_the_projects_variables_win_over_the_users_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert locations.default_data() == "/data/hst/data"
    monkeypatch.setenv("HST_DATA", "s3://bucket/raw")
    monkeypatch.setenv("HST_STORAGE", "/fast")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert (locations.default_data(), locations.default_storage()) == ("s3://bucket/raw", "/fast")
    assert locations.default_tracking_uri() == "http://127.0.0.1:5000"


def test_ledgers_are_local_wherever_the_storage_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HST_STORAGE", "s3://bucket/hst")
    assert locations.default_ledgers() == f"{home}/.local/share/hst/ledgers"


def test_a_cache_is_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HST_CACHE", "s3://bucket/cache")
    with pytest.raises(StorageError, match="HST_CACHE=s3://bucket/cache: expected a local folder"):
        locations.default_cache()


def test_a_relative_folder_of_the_user_is_ignored_as_its_specification_says(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "data")
    assert locations.default_data() == f"{home}/.local/share/hst/data"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", 50 * 10**9),
        ("0", 0),
        ("123", 123),
        ("20G", 20 * 10**9),
        (" 5k ", 5000),
        ("3M", 3 * 10**6),
        ("2T", 2 * 10**12),
    ],
)
def test_the_caches_limit_is_bytes_or_a_number_with_a_unit(
    given: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HST_CACHE_BYTES", given)
    assert locations.cache_limit_bytes() == expected


@pytest.mark.parametrize("given", ["much", "-1", "1.5G", "20GiB", "G", "1 000", "٣"])
def test_another_limit_is_an_error_that_says_what_is_expected(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HST_CACHE_BYTES", given)
    with pytest.raises(StorageError, match=f"HST_CACHE_BYTES={given}: expected a number of bytes like .*, or 20G"):
        locations.cache_limit_bytes()
