"""The same functions on the local disk and on a real S3 server."""

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage import files, resuming
from pipeline.storage.files import StorageError


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "store")
    else:
        request.getfixturevalue("s3_folder")
        yield "s3://bucket/store"


def test_what_is_written_is_read_back_and_listed(root: str) -> None:
    for name, data in (("a.txt", b"one"), ("b/c.txt", b""), ("b/d e.txt", b"\x00" * 3_000_000)):
        files.write_bytes(files.join(root, name), data)
        assert files.read_bytes(files.join(root, name)) == data
        assert files.size(files.join(root, name)) == len(data)
    assert files.list_prefix(root) == ["a.txt", "b/c.txt", "b/d e.txt"]
    assert files.list_prefix(files.join(root, "b")) == ["c.txt", "d e.txt"]
    assert files.list_prefix(files.join(root, "none")) == []


def test_a_place_that_can_be_written_is_left_as_it_was(root: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    files.check_writable(files.join(root, "a/b"))
    assert files.list_prefix(root) == []
    assert sorted(tmp_path.iterdir()) == before


def test_a_place_that_cannot_be_written_is_one_fault_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(StorageError, match=f"{place}: {tmp_path}/file is no folder"):
            files.check_writable(str(place))
    if os.path.isdir("/proc/self"):
        with pytest.raises(StorageError, match=r"/proc/none: nothing can be written in /proc \("):
            files.check_writable("/proc/none")


def test_a_bucket_that_is_not_there_is_told(s3_folder: Path) -> None:
    for check in (files.check_bucket, files.check_writable):
        check("s3://bucket/a")
        with pytest.raises((FileNotFoundError, StorageError), match=r"^no bucket s3://no-such-bucket$"):
            check("s3://no-such-bucket/a/b")


def test_a_second_write_replaces_the_first(root: str) -> None:
    uri = files.join(root, "a")
    files.write_bytes(uri, b"long ago")
    files.write_bytes(uri, b"now")
    assert files.read_bytes(uri) == b"now"
    assert files.list_prefix(root) == ["a"]


def test_what_is_not_there_is_the_same_error_everywhere(root: str) -> None:
    files.write_bytes(files.join(root, "folder/a"), b"x")
    for name in ("a", "folder", "folder/a/b"):
        uri = files.join(root, name)
        assert not files.exists(uri)
        with pytest.raises(FileNotFoundError):
            files.size(uri)
    with pytest.raises(FileNotFoundError):
        files.read_bytes(files.join(root, "a"))
    with pytest.raises(FileNotFoundError):
        files.fetch(files.join(root, "a"))


def test_put_once_writes_only_the_first_time(root: str) -> None:
    uri = files.join(root, "deep/er/once")
    assert files.put_once(uri, b"first")
    assert not files.put_once(uri, b"second")
    assert files.read_bytes(uri) == b"first"
    assert files.list_prefix(root) == ["deep/er/once"]


def test_a_content_is_hashed_where_it_lies(root: str) -> None:
    uri = files.join(root, "a")
    with pytest.raises(FileNotFoundError):
        files.content_sha256(uri)
    for data in (b"", bytes(range(256)) * 10_000):
        files.write_bytes(uri, data)
        assert files.content_sha256(uri) == hashlib.sha256(data).hexdigest()


def test_copy_goes_between_any_two_places(root: str, tmp_path: Path) -> None:
    data = os.urandom(2_500_000)
    files.write_bytes(files.join(root, "a"), data)
    files.copy(files.join(root, "a"), files.join(root, "x/b"))
    files.copy(files.join(root, "x/b"), str(tmp_path / "local/c"))
    files.copy(str(tmp_path / "local/c"), files.join(root, "d"))
    assert files.read_bytes(files.join(root, "d")) == data


def test_delete_removes_what_is_there_and_leaves_the_rest(root: str) -> None:
    files.write_bytes(files.join(root, "a"), b"x")
    files.write_bytes(files.join(root, "ab"), b"x")
    files.delete(files.join(root, "a"))
    files.delete(files.join(root, "a"))
    assert files.list_prefix(root) == ["ab"]


def test_fetch_gives_a_local_file_and_checks_its_hash(root: str) -> None:
    uri = files.join(root, "weights.safetensors")
    data = os.urandom(1_500_000)
    sha256 = hashlib.sha256(data).hexdigest()
    files.write_bytes(uri, data)
    for expected in (None, sha256):
        path = files.fetch(uri, sha256=expected)
        assert (path.read_bytes(), path.name) == (data, "weights.safetensors")
    with pytest.raises(StorageError, match=f"its sha256 is {sha256}, expected {'0' * 64}"):
        files.fetch(uri, sha256="0" * 64)


def test_a_fetched_object_is_cached_by_its_content(s3_folder: Path, tmp_path: Path) -> None:
    files.write_bytes("s3://bucket/a/w.bin", b"one")
    sha256 = hashlib.sha256(b"one").hexdigest()
    path = files.fetch("s3://bucket/a/w.bin")
    assert path == tmp_path / "cache/sha256" / sha256 / "w.bin"
    files.delete("s3://bucket/a/w.bin")
    assert files.fetch("s3://bucket/a/w.bin", sha256=sha256) == path
    # Two objects of one name do not collide, and a damaged copy is not used.
    files.write_bytes("s3://bucket/b/w.bin", b"two")
    assert files.fetch("s3://bucket/b/w.bin").read_bytes() == b"two"
    path.write_bytes(b"xxx")
    files.write_bytes("s3://bucket/a/w.bin", b"one")
    assert files.fetch("s3://bucket/a/w.bin", sha256=sha256).read_bytes() == b"one"
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_write_that_fails_leaves_the_old_content_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    files.write_bytes(str(path), b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(files.StorageError, match=f"^{path}: No space left on device; make room there"):
        files.write_bytes(str(path), b"new")
    with pytest.raises(OSError, match="No space"):
        files.put_once(str(tmp_path / "b"), b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert files.list_prefix(str(tmp_path)) == ["a"]


def test_of_many_writers_at_once_put_once_lets_one_win(tmp_path: Path) -> None:
    uri = str(tmp_path / "x/once")
    won: list[int] = []

    def write(number: int) -> None:
        if files.put_once(uri, str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert files.read_bytes(uri) == str(won[0]).encode()


def test_without_hard_links_put_once_still_lets_one_win_and_shows_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_paths: str) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as Linux answers on exFAT

    monkeypatch.setattr(os, "link", refuses)
    test_of_many_writers_at_once_put_once_lets_one_win(tmp_path)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["once"], "something stayed behind"


def test_an_error_that_is_not_about_hard_links_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_paths: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", refuses)
    with pytest.raises(OSError, match="No space"):
        files.put_once(str(tmp_path / "once"), b"x")


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    files.write_bytes(str(tmp_path / "ours"), b"")
    (tmp_path / "theirs").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_addresses_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert files.absolute("a/../b/") == f"{tmp_path}/b"
    assert files.absolute("~/b") == "/home/someone/b"
    assert files.absolute("file:///b") == "/b"
    assert files.absolute("s3://bucket/a/") == "s3://bucket/a"
    assert files.absolute("s3://bucket/") == "s3://bucket"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "pipe:cat x",
        "HTTP://host/x",
        "ftp://host/x",
        "gs://bucket/x",
        "s3a://b/x",
        "gs2://b",
        "S3://b",
        "s3://",
        "s3:///x",
        "s3:/bucket/x",
        "a\0b",
    ],
)
def test_an_address_of_another_kind_is_refused(uri: str) -> None:
    with pytest.raises(StorageError, match="expected"):
        files.absolute(uri)
    with pytest.raises(StorageError, match="expected"):
        files.open_read(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:hunter22@bucket/a",
        "s3://KEY:hun/ter22@bucket/a",
        "s3://hunter22@bucket",
        "http://me:hunter22@host/a",
        "http://me:hun/ter22@host/a",
        "gs://me:hunter22@bucket",
        "postgresql://me:hunter22@host/db",
    ],
)
def test_an_address_with_a_login_is_refused_and_its_error_does_not_repeat_it(uri: str) -> None:
    uses = [
        lambda: files.absolute(uri),
        lambda: files.absolute(uri, reading=True),
        lambda: files.join(uri, "b"),
        lambda: files.join("s3://bucket", uri),
        lambda: files.open_read(uri),
        lambda: files.fetch(uri),
        lambda: files.check_writable(uri),
    ]
    for use in uses:
        with pytest.raises(StorageError) as raised:
            use()
        assert "hun" not in str(raised.value)
        assert "ter22" not in str(raised.value)


@pytest.mark.parametrize(
    "uri", ["s3:/KEY:hunter22@bucket/a", "http:/me:hunter22@host", "gs://me:hun ter22@bucket", "http://me:ter22 @host"]
)
def test_a_misspelled_address_is_refused_and_its_error_does_not_repeat_its_login(uri: str) -> None:
    for reading in (False, True):
        with pytest.raises(StorageError, match=r"^address '\*\*\*': expected") as raised:
            files.absolute(uri, reading=reading)
        assert "ter22" not in str(raised.value)


def test_a_key_in_an_s3_address_is_refused_with_the_way_out() -> None:
    with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        files.absolute("s3://KEY:hunter22@bucket")


def test_joining_stays_in_the_bucket_and_takes_no_absolute_part() -> None:
    assert files.join("s3://bucket/a/b", "../c", "d") == "s3://bucket/a/c/d"
    assert files.join("s3://bucket/a", "..") == "s3://bucket"
    assert files.join("/a/b", "../c") == "/a/c"
    with pytest.raises(StorageError, match="leads out of the bucket"):
        files.join("s3://bucket/a", "../../other")
    for part in ("/etc/passwd", "s3://other/x"):
        for root in ("/a", "s3://bucket/a"):
            with pytest.raises(StorageError, match="expected a relative path"):
                files.join(root, part)


def test_wrong_credentials_are_named_as_such(s3_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match=r"s3://bucket/a: .*403.*are the credentials right"):
        files.read_bytes("s3://bucket/a")


def test_missing_credentials_are_named_as_such(
    s3_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID"):
        files.read_bytes("s3://bucket/a")


def test_a_store_that_is_away_is_an_error_in_bounded_time(s3_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(resuming, "ATTEMPTS", 2)
    with pytest.raises(StorageError, match=r"http://127.0.0.1:9 could not be read"):
        files.read_bytes("s3://bucket/a")


def test_ray_gets_the_same_store(s3_folder: Path, tmp_path: Path) -> None:
    assert files.ray_filesystem(str(tmp_path)) == (None, str(tmp_path))
    filesystem, path = files.ray_filesystem("s3://bucket/runs/")
    assert (filesystem.type_name, path) == ("s3", "bucket/runs")
