"""Remote reads, from a real S3 server and over HTTP, resume after a proxy has broken their connections."""

import hashlib
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.storage import files, resuming
from pipeline.storage.files import StorageError
from tests.pipeline.fault_proxy import Fault, FaultProxy
from tests.pipeline.range_server import RangeServer

DATA = random.Random(0).randbytes(300_000)


@dataclass
class Source:
    """DATA as an object behind a proxy."""

    uri: str
    proxy: FaultProxy
    folder: Path | None
    server: RangeServer | None

    def replace(self, data: bytes) -> None:
        if self.folder is not None:
            (self.folder / "bucket/object").write_bytes(data)
        if self.server is not None:
            self.server.objects["/object"] = data


@pytest.fixture(params=["s3", "http"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Source]:
    monkeypatch.setattr(resuming, "FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("HST_CACHE", str(tmp_path / "cache"))
    if request.param == "s3":
        folder = request.getfixturevalue("s3_folder")
        proxy = FaultProxy(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        opened = Source("s3://bucket/object", proxy, folder, None)
    else:
        server = request.getfixturevalue("range_server")
        proxy = FaultProxy(server.port)
        opened = Source(f"http://127.0.0.1:{proxy.port}/object", proxy, None, server)
    opened.replace(DATA)
    yield opened
    proxy.close()


def read_from(uri: str, position: int, length: int) -> bytes:
    with files.open_range(uri, position, length) as stream:
        return stream.read()


PLANS: dict[str, list[Fault | None]] = {
    "nothing": [],
    "reset": [Fault("reset", 100_000)],
    "reset before the first byte": [Fault("reset", 0)],
    "reset before the last byte": [Fault("reset", len(DATA) - 1)],
    "cut": [Fault("cut", 77_777)],
    "cut after one byte": [Fault("cut", 1)],
    "stall": [Fault("stall", 123_456)],
    "no answer": [Fault("hang up"), Fault("cut", 1000), Fault("hang up")],
    "500": [Fault("status", status=500)],
    "503 in the middle": [Fault("cut", 1000), Fault("status", status=503), Fault("status", status=503)],
    "429 and 408": [Fault("status", status=429), Fault("status", status=408)],
    "all in a row": [
        Fault("status", status=503),
        Fault("reset", 65_537),
        Fault("status", status=500),
        Fault("cut", 10_000),
        Fault("reset", 0),
        Fault("reset", 3),
        Fault("cut", 0),
    ],
}


@pytest.mark.parametrize("name", PLANS)
def test_a_stream_over_faults_gives_the_bytes_and_asks_for_none_twice(
    name: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any(fault is not None and fault.kind == "stall" for fault in PLANS[name]):
        monkeypatch.setattr(resuming, "READ_TIMEOUT_S", 3.0)
    source.proxy.plan = list(PLANS[name])
    with files.open_read(source.uri) as stream:
        assert stream.read() == DATA
    expected, position = [], 0
    for fault in [*PLANS[name], None]:
        expected.append(f"bytes={position}-" if position else None)
        position += 0 if fault is None else fault.after
    assert source.proxy.ranges() == expected
    assert source.proxy.served() == len(DATA)


@pytest.mark.parametrize("name", ["nothing", "reset", "cut", "503 in the middle"])
def test_a_part_is_exactly_that_part_over_faults(name: str, source: Source) -> None:
    source.proxy.plan = list(PLANS[name])
    assert read_from(source.uri, 1234, 200_000) == DATA[1234:201_234]
    assert source.proxy.served() == 200_000
    assert source.proxy.ranges()[0] == "bytes=1234-201233"
    assert all(str(asked).endswith("-201233") for asked in source.proxy.ranges())


def test_download_and_fetch_go_on_as_well(source: Source, tmp_path: Path) -> None:
    for number in range(2):
        source.proxy.plan = [Fault("reset", 50_000), Fault("cut", 50_000)]
        if number == 0:
            with open(tmp_path / "copy", "wb") as file:
                assert files.download(source.uri, file) == hashlib.sha256(DATA).hexdigest()
            assert (tmp_path / "copy").read_bytes() == DATA
        else:
            assert files.fetch(source.uri).read_bytes() == DATA
    assert source.proxy.served() == 2 * len(DATA)


@pytest.mark.parametrize("part", [False, True])
def test_a_later_request_names_the_object_that_the_first_one_gave(part: bool, source: Source) -> None:
    source.proxy.plan = [Fault("status", status=503), Fault("reset", 10), Fault("cut", 10)]
    with files.open_range(source.uri, 5, 200_000) if part else files.open_read(source.uri) as stream:
        stream.read()
    tags = [request.headers.get("if-match") for request in source.proxy.requests]
    assert tags[:2] == [None, None]
    assert tags[2] is not None
    assert tags[2] == tags[3]
    assert tags[2].startswith('"')


def test_an_object_that_was_replaced_in_the_middle_is_refused(source: Source) -> None:
    other = bytes(byte ^ 1 for byte in DATA)
    for knows_if_match in (True, False) if source.server else (False,):
        source.replace(DATA)
        if source.server:
            source.server.knows_if_match = knows_if_match
        source.proxy.plan = [Fault("reset", 100_000)]
        with files.open_read(source.uri) as stream:
            assert stream.read(1000) == DATA[:1000]
            source.replace(other)
            with pytest.raises(StorageError, match="object: was replaced while it was read"):
                stream.read()


def test_an_object_that_became_shorter_is_told_as_replaced(source: Source) -> None:
    source.proxy.plan = [Fault("reset", 100_000)]
    with files.open_read(source.uri) as stream:
        assert stream.read(1000) == DATA[:1000]
        source.replace(b"short")
        with pytest.raises(StorageError, match="object: was replaced while it was read"):
            stream.read()


@pytest.mark.parametrize("status", [403, 404, 400])
def test_what_another_attempt_would_not_change_is_one_request(status: int, source: Source) -> None:
    kind = FileNotFoundError if status == 404 else StorageError
    source.proxy.plan = [Fault("status", status=status)]
    with pytest.raises(kind, match="no object" if status == 404 else f"object: .*answered {status}"):
        files.open_read(source.uri)
    assert len(source.proxy.requests) == 1
    source.proxy.plan = [Fault("cut", 5), Fault("status", status=status)]
    with files.open_read(source.uri) as stream, pytest.raises(kind):
        stream.read()
    assert len(source.proxy.requests) == 3


def test_a_server_that_only_fails_is_given_up(source: Source) -> None:
    source.proxy.plan = [Fault("status", status=503)] * 100
    with pytest.raises(StorageError, match=r"object: .*answered 503 .*; given up after 5 failures"):
        files.open_read(source.uri)
    assert len(source.proxy.requests) == resuming.ATTEMPTS


def test_failures_in_a_row_are_counted_from_the_last_byte_that_came(source: Source) -> None:
    fails: list[Fault | None] = [Fault("status", status=503)] * 3
    source.proxy.plan = [*fails, Fault("cut", 10), *fails, Fault("reset", 10), *fails, Fault("cut", 0)]
    with files.open_read(source.uri) as stream, pytest.raises(StorageError, match="299980 bytes before the end"):
        stream.read()
    assert len(source.proxy.requests) == 12


def test_what_moves_by_a_few_bytes_each_time_ends_too(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "TOTAL_ATTEMPTS", 9)
    source.proxy.plan = [Fault("cut", 10)] * 1000
    with (
        files.open_read(source.uri) as stream,
        pytest.raises(StorageError, match="ended 299910 bytes before the end; given up after 9 failures"),
    ):
        stream.read()


def test_a_server_that_is_silent_is_given_up_in_bounded_time(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "READ_TIMEOUT_S", 0.3)
    monkeypatch.setattr(resuming, "ATTEMPTS", 2)
    source.proxy.plan = [Fault("stall", 10), Fault("stall", 0)]
    started = time.monotonic()
    with files.open_read(source.uri) as stream, pytest.raises(StorageError, match=r"broke off .*timed out"):
        stream.read()
    assert time.monotonic() - started < 10


def test_a_part_beyond_the_end_is_an_error(source: Source, tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(DATA)
    for uri in (source.uri, str(tmp_path / "object")):
        for start, length in ((len(DATA) - 5, 6), (len(DATA), 1), (len(DATA) + 100, 5)):
            with pytest.raises(StorageError, match=r"object: (ends|has)"):
                read_from(uri, start, length)
        for start, length in ((-1, 5), (0, 0), (5, -1)):
            with pytest.raises(StorageError, match="expected at least one, and none before byte 0"):
                read_from(uri, start, length)
        assert read_from(uri, len(DATA) - 5, 5) == DATA[-5:]
        assert read_from(uri, 0, 7) == DATA[:7]
        with pytest.raises(FileNotFoundError):
            read_from(uri + "s", 0, 1)


def test_an_empty_object_is_an_empty_stream(source: Source) -> None:
    source.replace(b"")
    assert files.read_bytes(source.uri) == b""


def test_a_stream_that_was_closed_does_not_open_again(source: Source) -> None:
    stream = files.open_read(source.uri)
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.read()
    assert len(source.proxy.requests) == 1


def test_waits_grow_up_to_a_limit_and_leave_the_global_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(resuming, "ATTEMPTS", 9)
    state = random.getstate()
    patience = resuming.Patience()
    for _ in range(8):
        patience.failed(resuming.PassingError("x"))
    for wait, most in zip(waits, [0.5, 1, 2, 4, 8, 16, 16, 16], strict=True):
        assert most / 2 <= wait <= most
    assert random.getstate() == state
