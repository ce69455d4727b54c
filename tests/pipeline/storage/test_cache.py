"""The cache of remote files, used by several processes at once."""

import fcntl
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.storage import cache, files, resuming
from pipeline.storage.files import CacheFullError, StorageError
from tests.pipeline.range_server import RangeServer

Serve = Callable[[str, bytes], tuple[str, str]]
ROOT = Path(__file__).resolve().parents[3]
DATA = random.Random(0).randbytes(200_000)

FETCH = """
import sys
from pipeline.storage import files
print("ready", flush=True)
path = files.fetch(sys.argv[1], sha256=sys.argv[2])
print(path.read_bytes().hex()[:8], flush=True)
sys.stdin.read()  # so that what it fetched is in use until the test says otherwise
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache's folder; this process gives up its copies after the test."""
    monkeypatch.setenv("HST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(resuming, "FIRST_WAIT_S", 0.001)
    kept: dict[Path, int] = {}
    monkeypatch.setattr(cache, "_kept", kept)
    yield tmp_path / "cache/sha256"
    for lock in kept.values():
        os.close(lock)


@pytest.fixture
def serve(range_server: RangeServer) -> Serve:
    """Serves bytes under a name; returns the address and the sha256."""

    def served(name: str, data: bytes) -> tuple[str, str]:
        range_server.objects[f"/{name}"] = data
        return f"{range_server.address}/{name}", hashlib.sha256(data).hexdigest()

    return served


@contextmanager
def process(uri: str, sha256: str) -> Iterator[subprocess.Popen[str]]:
    """Yields another process when it is about to fetch."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", FETCH, uri, sha256], stdin=pipe, stdout=pipe, text=True, env=environment
    ) as started:
        assert started.stdout is not None
        try:
            assert started.stdout.readline() == "ready\n"
            yield started
        finally:
            started.kill()


def fetched(started: subprocess.Popen[str]) -> str:
    """Waits for the other process and returns the first bytes of the file it fetched."""
    assert started.stdout is not None
    return started.stdout.readline().strip()


def wait_until(condition: Callable[[], object], what: str) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise TimeoutError(f"not within 10 s: {what}")


def waits_for_a_lock(pid: int) -> bool:
    """Whether the process is waiting for a flock."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and "FLOCK" in line and f" {pid} " in line for line in lines)


def names(folder: Path) -> set[str]:
    """Names of the files in the cache, without its locks."""
    return {path.name for path in folder.rglob("*") if path.is_file() and path.name not in (".hold", ".fill", ".room")}


def test_of_two_processes_that_want_the_same_one_downloads_and_the_other_waits(
    serve: Serve, range_server: RangeServer, folder: Path
) -> None:
    uri, sha256 = serve("a.tar", DATA)
    range_server.gate.clear()
    with process(uri, sha256) as first:
        wait_until(lambda: range_server.gets, "the first asks")
        with process(uri, sha256) as second:
            wait_until(lambda: waits_for_a_lock(second.pid), "the second waits")
            assert names(folder) != {"a.tar"}
            range_server.gate.set()
            assert fetched(first) == fetched(second) == DATA[:4].hex()
    assert len(range_server.gets) == 1
    assert names(folder) == {"a.tar"}


def test_what_a_killed_download_left_is_never_used_and_is_swept(
    serve: Serve, range_server: RangeServer, folder: Path
) -> None:
    uri, sha256 = serve("a.tar", DATA)
    range_server.gate.clear()
    with process(uri, sha256) as first:
        wait_until(lambda: names(folder), "the first writes")
        with process(uri, sha256) as second:
            wait_until(lambda: waits_for_a_lock(second.pid), "the second waits")
            first.send_signal(signal.SIGKILL)
            first.wait()
            (left,) = names(folder)
            assert left.endswith(".part")
            range_server.gate.set()
            assert fetched(second) == DATA[:4].hex()
    assert names(folder) == {"a.tar"}
    assert len(range_server.gets) == 2


def test_a_download_under_way_is_not_swept_and_has_its_room(
    serve: Serve,
    range_server: RangeServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HST_CACHE_BYTES", "300K")
    slow, slow_sha256 = serve("slow.tar", DATA)
    range_server.gate.clear()
    small, large = serve("small.tar", DATA[:100_000]), serve("large.tar", DATA[:100_001])
    with process(slow, slow_sha256) as other:
        wait_until(lambda: any(path.stat().st_size == len(DATA) for path in folder.glob(".*.part")), "its room")
        with pytest.raises(CacheFullError, match="200,000 are in use by running processes; set HST_CACHE_BYTES"):
            use(*large)
        threading.Timer(0.5, range_server.gate.set).start()
        use(*small)
        assert fetched(other) == DATA[:4].hex()
    assert names(folder) == {"slow.tar", "small.tar"}


def use(uri: str, sha256: str) -> Path:
    with files.hold(uri, sha256=sha256) as path:
        return path


def test_what_was_used_longest_ago_goes_first(serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HST_CACHE_BYTES", "350000")
    a, b, c, d, e = (serve(name, bytes([number]) * 100_000) for number, name in enumerate("abcde"))
    for one in (a, b, c):
        use(*one)
    use(*a)  # so that b is now the one used longest ago
    use(*d)
    assert names(folder) == {"a", "c", "d"}
    use(*e)
    assert names(folder) == {"a", "d", "e"}
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 3, "an evicted entry left its folder"
    monkeypatch.setenv("HST_CACHE_BYTES", "150000")
    use(*c)
    assert names(folder) == {"c"}


def test_what_another_process_uses_is_not_evicted_until_it_ends(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HST_CACHE_BYTES", "250000")
    a, b, c = (serve(name, bytes([number]) * 100_000) for number, name in enumerate("abc"))
    with process(*a) as other:
        fetched(other)
        use(*b)
        use(*c)  # a is older, and in use
        assert names(folder) == {"a", "c"}
        monkeypatch.setenv("HST_CACHE_BYTES", "150000")
        with pytest.raises(CacheFullError, match="100,000 are in use"):
            use(*b)
        assert names(folder) == {"a"}
        other.kill()
        other.wait()
        use(*b)
        assert names(folder) == {"b"}


def test_fetched_is_kept_for_this_process_and_held_only_for_the_block(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HST_CACHE_BYTES", "250000")
    a, b, c = (serve(name, bytes([number]) * 100_000) for number, name in enumerate("abc"))
    for _ in range(3):
        path = files.fetch(a[0], sha256=a[1])
    open_files = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert open_files.count(str(path.parent / ".hold")) == 1
    with files.hold(b[0], sha256=b[1]), pytest.raises(CacheFullError, match="200,000 are in use"):
        files.fetch(c[0], sha256=c[1])
    files.fetch(c[0], sha256=c[1])
    assert names(folder) == {"a", "c"}


def test_a_file_longer_than_the_cache_may_be_is_an_error_that_says_what_to_set(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HST_CACHE_BYTES", "199999")
    kept, large = serve("kept", b"x"), serve("large", DATA)
    use(*kept)
    with pytest.raises(CacheFullError, match=r"/large: 200,000 bytes, .* 199,999; set HST_CACHE_BYTES to more"):
        use(*large)
    assert names(folder) == {"kept"}, "room was made for what cannot fit"
    with files.open_read(large[0]) as stream:
        assert stream.read() == DATA


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
@pytest.mark.parametrize("known", [True, False])
def test_a_damaged_copy_is_replaced_even_while_somebody_holds_it(
    damage: str, known: bool, serve: Serve, range_server: RangeServer
) -> None:
    uri, sha256 = serve("a", DATA)
    with files.hold(uri, sha256=sha256) as path, open(path, "rb") as reader:
        if not known:
            cache._hashed.clear()  # as in a process that has not seen it yet
        if damage == "changed":
            path.write_bytes(DATA[:-1] + b"!")
        elif damage == "cut":
            path.write_bytes(DATA[:-1])
        else:
            path.unlink()
        assert use(uri, sha256).read_bytes() == DATA
        assert len(reader.read()) >= len(DATA) - 1
    assert len(range_server.gets) == 2


def test_an_intact_copy_is_hashed_once_a_process(
    serve: Serve, range_server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, sha256 = serve("a", DATA)
    use(uri, sha256)
    cache._hashed.clear()
    hashed: list[Path] = []

    def hashing(path: Path) -> str:
        hashed.append(path)
        return files.file_sha256(path)

    monkeypatch.setattr(cache, "file_sha256", hashing)
    for _ in range(3):
        assert use(uri, sha256).read_bytes() == DATA
    assert len(hashed) == 1
    assert len(range_server.gets) == 1


def test_content_that_is_not_what_was_asked_for_is_not_kept(serve: Serve, folder: Path) -> None:
    uri, sha256 = serve("a", DATA)
    with pytest.raises(StorageError, match=f"/a: its sha256 is {sha256}, expected {'0' * 64}"):
        use(uri, "0" * 64)
    assert names(folder) == set()
    with pytest.raises(StorageError, match="expected 64 of 0-9a-f"):
        use(uri, "../" + sha256[3:])


def test_an_entry_that_is_evicted_while_its_lock_is_waited_for_is_made_again(folder: Path) -> None:
    entry = folder / ("0" * 64)
    entry.mkdir(parents=True)
    locks: list[int] = []
    with open(entry / ".hold", "ab") as evicting:
        fcntl.flock(evicting, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: locks.append(cache._hold(entry)))
        thread.start()
        wait_until(lambda: waits_for_a_lock(os.getpid()), "the thread waits")
        (entry / ".hold").unlink()
        entry.rmdir()
    thread.join(10)
    assert os.path.samestat(os.fstat(locks[0]), os.stat(entry / ".hold"))
    assert cache._evict(entry) == 0
    assert entry.exists()
    os.close(locks[0])
    cache._evict(entry)
    assert not entry.exists()


def test_a_name_that_is_the_caches_own_is_changed(serve: Serve) -> None:
    for name, expected in ((".hold", "hold"), ("..", "object"), (".x.part", "x.part")):
        uri, sha256 = serve(name, name.encode())
        assert use(uri, sha256).name == expected


def test_a_full_disk_leaves_nothing(serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(stream: object, destination: object) -> str:
        raise OSError(28, "No space left on device")

    uri, sha256 = serve("a", DATA)
    monkeypatch.setattr(cache, "copy_hashed", full)
    for expected in (sha256, None):
        with pytest.raises(OSError, match="No space left"):
            files.fetch(uri, sha256=expected)
    assert names(folder) == set()
