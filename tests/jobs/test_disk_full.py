"""When storage is full, one error says where, nothing half-written is read later, and the same command goes on."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.data.demo import make_demo_data
from tests.jobs.fanout_process import assert_equal, command, run, tensors

EPOCHS = 2

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]


def mount(folder: Path, kilobytes: int, *options: str) -> None:
    words = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={kilobytes}k"]), "tmpfs", str(folder)]
    mounted = subprocess.run(words, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of 100 kB; `mount` with ``remount`` changes its size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, 100)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that had enough room."""
    root = tmp_path_factory.mktemp("whole")
    make_demo_data(root / "data")
    ended = run(root, command(root, "storage", epochs=EPOCHS))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return root


@pytest.mark.parametrize(
    ("kilobytes", "full_at"), [(1000, "shards/"), (4000, "train/demo-digits-")], ids=["shards", "checkpoints"]
)
def test_a_full_disk_is_named_and_the_same_command_goes_on_once_there_is_room(
    kilobytes: int, full_at: str, small_disk: Path, whole: Path, tmp_path: Path
) -> None:
    mount(small_disk, kilobytes, "remount")
    words = command(whole, "storage", epochs=EPOCHS, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    words[words.index("--storage") + 1] = str(small_disk / "storage")
    refused = run(tmp_path, words)
    assert refused.returncode == 1, refused.stdout + refused.stderr
    (said,) = [line for line in refused.stdout.splitlines() if "FAILED" in line]
    assert f"{small_disk}/storage/{full_at}" in said
    assert "No space left on device" in said
    assert "Traceback" not in refused.stdout + refused.stderr
    (end,) = refused.stderr.splitlines()
    # The last few bytes may or may not fit into the ledger.
    ledger = f"error: {small_disk}/storage/ledgers/"
    assert end == "1 of 1 tasks failed: demo-digits" or (end.startswith(ledger) and "No space left on device" in end)

    mount(small_disk, 200_000, "remount")
    again = run(tmp_path, words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert_equal(tensors(small_disk / "storage"), tensors(whole / "storage"))
    assert not list(small_disk.rglob("*.part"))
