"""Addresses of plain HTTP: read whole, in parts and into the cache; never written to."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.storage import files, http_read, resuming
from pipeline.storage.files import StorageError
from tests.pipeline.fault_proxy import Fault, FaultProxy
from tests.pipeline.range_server import RangeServer

DATA = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resuming, "FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("HST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def uri(range_server: RangeServer) -> str:
    range_server.objects["/data/a.tar"] = DATA
    return f"{range_server.address}/data/a.tar"


def break_once(range_server: RangeServer, after: int = 1000) -> tuple[FaultProxy, str]:
    proxy = FaultProxy(range_server.port)
    proxy.plan = [Fault("cut", after)]
    return proxy, f"http://127.0.0.1:{proxy.port}/data/a.tar"


def test_what_is_served_is_read_as_from_anywhere(uri: str, tmp_path: Path) -> None:
    assert files.is_remote(uri)
    assert files.size(uri) == len(DATA)
    assert files.read_bytes(uri) == DATA
    with files.open_range(uri, 10, 1000) as stream:
        assert stream.read() == DATA[10:1010]
    assert files.exists(uri)
    assert not files.exists(f"{uri}.gz")
    with pytest.raises(FileNotFoundError, match=r"no object http://.*a\.tar\.gz"):
        files.open_read(f"{uri}.gz")
    files.copy(uri, str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == DATA


def test_a_fetched_file_is_cached_under_its_name_without_what_follows_the_question_mark(
    uri: str, range_server: RangeServer, tmp_path: Path
) -> None:
    sha256 = hashlib.sha256(DATA).hexdigest()
    for _ in range(2):
        path = files.fetch(f"{uri}?signature=secret", sha256=sha256)
    assert path == tmp_path / "cache/sha256" / sha256 / "a.tar"
    assert path.read_bytes() == DATA
    assert len(range_server.gets) == 1


WRITES: dict[str, Callable[[str], object]] = {
    "write_bytes": lambda uri: files.write_bytes(uri, b"x"),
    "put_once": lambda uri: files.put_once(uri, b"x"),
    "copy": lambda uri: files.copy(__file__, uri),
    "delete": files.delete,
    "list_prefix": files.list_prefix,
    "ray_filesystem": files.ray_filesystem,
    "absolute": files.absolute,
}


@pytest.mark.parametrize("name", WRITES)
def test_nothing_is_written_to_it(name: str) -> None:
    with pytest.raises(StorageError, match=r"address 'http://host/x': expected a local path or s3://.*can be read"):
        WRITES[name]("http://host/x")


def test_an_address_is_taken_for_reading() -> None:
    assert files.absolute("https://host/a/", reading=True) == "https://host/a"
    assert files.absolute("https://host:8080/a?b=c/#d", reading=True) == "https://host:8080/a?b=c/"
    assert files.absolute("s3://bucket/a/", reading=True) == "s3://bucket/a"


@pytest.mark.parametrize("uri", ["http://", "https:///a", "http://host:port/a", "http://host/a b", "http://host/ä"])
def test_an_address_that_no_request_can_be_made_of_is_refused(uri: str) -> None:
    for use in (lambda: files.absolute(uri, reading=True), lambda: files.open_read(uri), lambda: files.size(uri)):
        with pytest.raises(StorageError, match="expected https://host/path"):
            use()


def test_a_password_in_an_address_is_refused_and_not_printed() -> None:
    with pytest.raises(StorageError, match="are not supported") as raised:
        files.open_read("http://me:secret@host/a")
    assert "secret" not in str(raised.value)


def test_joining_stays_on_the_server() -> None:
    assert files.join("https://host/a/manifest.json", "..", "x-000.tar") == "https://host/a/x-000.tar"
    assert files.join("https://host", "a b", "c#1") == "https://host/a%20b/c%231"
    assert files.join("https://host/a", "..") == "https://host"
    with pytest.raises(StorageError, match="leads out of the server"):
        files.join("https://host/a", "../../b")
    with pytest.raises(StorageError, match="has nothing below it"):
        files.join("https://host/a?token=secret", "b")
    with pytest.raises(StorageError, match="expected a relative path"):
        files.join("https://host/a", "/b")


def test_without_ranges_a_whole_file_is_read_and_what_needs_them_says_so(uri: str, range_server: RangeServer) -> None:
    range_server.knows_ranges = False
    assert files.read_bytes(uri) == DATA
    with files.open_range(uri, 0, 5) as stream:
        assert stream.read() == DATA[:5]
    with pytest.raises(StorageError, match="it serves no ranges"):
        files.open_range(uri, 10, 5)
    proxy, broken = break_once(range_server)
    with files.open_read(broken) as stream, pytest.raises(StorageError, match="it serves no ranges"):
        stream.read()
    proxy.close()


@pytest.mark.parametrize(("etag", "modified"), [('W/"{}"', ""), ("", "Fri, 20 Nov 2026 10:00:00 GMT"), ("", "")])
def test_where_there_is_no_strong_tag_none_is_asked_for(etag: str, modified: str, range_server: RangeServer) -> None:
    range_server.objects["/data/a.tar"] = DATA
    range_server.etag, range_server.modified = etag, modified
    proxy, broken = break_once(range_server)
    assert files.read_bytes(broken) == DATA
    assert proxy.ranges() == [None, "bytes=1000-"]
    assert [request.headers.get("if-match") for request in proxy.requests] == [None, None]
    proxy.close()


@pytest.mark.parametrize("changed", ["weak tag", "time", "length"])
def test_a_replaced_file_without_a_strong_tag_is_seen_by_what_there_is(changed: str, range_server: RangeServer) -> None:
    range_server.objects["/data/a.tar"] = DATA
    range_server.etag = 'W/"{}"' if changed == "weak tag" else ""
    range_server.modified = "Fri, 20 Nov 2026 10:00:00 GMT" if changed == "time" else ""
    proxy, broken = break_once(range_server)
    with files.open_read(broken) as stream:
        stream.read(10)
        range_server.objects["/data/a.tar"] = DATA + b"x" if changed == "length" else DATA[::-1]
        if changed == "time":
            range_server.modified = "Fri, 20 Nov 2026 11:00:00 GMT"
        with pytest.raises(StorageError, match="was replaced while it was read"):
            stream.read()
    proxy.close()


def test_a_server_that_does_not_say_the_length_is_refused(uri: str, range_server: RangeServer) -> None:
    range_server.knows_length = False
    for read in (files.read_bytes, files.size):
        with pytest.raises(StorageError, match="does not give its length"):
            read(uri)


def test_a_redirect_is_followed_with_the_range_that_was_asked_for(uri: str, range_server: RangeServer) -> None:
    range_server.redirects["/moved"] = "/data/a.tar"
    moved = f"{range_server.address}/moved"
    assert files.size(moved) == len(DATA)
    with files.open_range(moved, 77, 1000) as stream:
        assert stream.read() == DATA[77:1077]


@pytest.mark.parametrize("place", ["ftp://127.0.0.1/a", "file:///etc/hostname"])
def test_a_redirect_to_anything_but_http_is_refused(place: str, range_server: RangeServer) -> None:
    range_server.redirects["/moved"] = place
    with pytest.raises(StorageError, match=r"/moved: .*(ftp|file)://"):
        files.open_read(f"{range_server.address}/moved")


def test_a_redirect_in_a_circle_ends(range_server: RangeServer) -> None:
    range_server.redirects["/moved"] = "/moved"
    with pytest.raises(StorageError, match="infinite loop"):
        files.open_read(f"{range_server.address}/moved")


def test_size_is_asked_again_where_the_server_fails_for_a_moment(
    uri: str, range_server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = [503, 500]
    answer = http_read._answer

    def failing(uri: str, method: str, headers: dict[str, str]) -> object:
        if codes:
            raise resuming.PassingError(f"{uri}: answered {codes.pop()}")
        return answer(uri, method, headers)

    monkeypatch.setattr(http_read, "_answer", failing)
    assert files.size(uri) == len(DATA)
    codes.extend([503] * 10)
    with pytest.raises(StorageError, match="given up after 5 failures"):
        files.size(uri)


def test_what_follows_the_question_mark_is_in_no_message(uri: str, range_server: RangeServer, unused_port: int) -> None:
    away = f"http://127.0.0.1:{unused_port}/a?signature=secret"
    for wrong in (f"{uri}x?signature=secret", away):
        for read in (files.read_bytes, files.size):
            with pytest.raises((StorageError, FileNotFoundError), match=r"\?\.\.\.") as raised:
                read(wrong)
            assert "secret" not in str(raised.value)


def test_the_environments_proxy_is_used(uri: str, range_server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # A request through a proxy names the whole address; this server then looks for an object of that name.
    range_server.objects["http://nowhere.invalid/a"] = b"through the proxy"
    monkeypatch.setenv("http_proxy", range_server.address)
    assert files.read_bytes("http://nowhere.invalid/a") == b"through the proxy"
