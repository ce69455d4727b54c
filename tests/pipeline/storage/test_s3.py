"""What is specific to S3. That streams resume after a broken connection is tested in test_resuming.py."""

import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.storage import files, resuming, s3
from pipeline.storage.files import StorageError
from tests.pipeline.conftest import Moto
from tests.pipeline.fault_proxy import Fault

DATA = bytes(range(256)) * 1000


def test_a_server_that_knows_if_match_refuses_what_was_replaced(moto: Moto) -> None:
    for other in (DATA[::-1], b"short"):
        moto.write("s3://bucket/a", DATA)
        moto.proxy.plan = [Fault("reset", 1000)]
        with files.open_read("s3://bucket/a") as stream:
            assert stream.read(10) == DATA[:10]
            moto.write("s3://bucket/a", other)
            with pytest.raises(StorageError, match="s3://bucket/a: was replaced while it was read"):
                stream.read()
        assert moto.proxy.requests[-1].status == 412


def test_a_server_that_knows_if_match_goes_on_with_what_is_still_there(moto: Moto) -> None:
    moto.write("s3://bucket/a", DATA)
    moto.proxy.plan = [Fault("reset", 1000), Fault("cut", 50_000)]
    assert files.read_bytes("s3://bucket/a") == DATA
    assert [request.status for request in moto.proxy.requests] == [200, 206, 206]
    assert moto.proxy.served() == len(DATA)


def test_a_name_that_no_bucket_has_is_told_at_once(s3_folder: Path, waits: list[float]) -> None:
    with pytest.raises(StorageError, match=r"s3://no bucket/a: .*Invalid bucket name"):
        files.open_read("s3://no bucket/a")
    assert waits == []


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize(
    ("endpoint", "told"),
    {
        "http://me:hunter22@127.0.0.1:9000": "http://***@127.0.0.1:9000",
        "http://127.0.0.1:9000/?sig=hunter22": "http://127.0.0.1:9000/?...",
        "me:hunter22@127.0.0.1:9000": "***",
        "http://me:hun hunter22@127.0.0.1:9000": "***",
        "http://me:1/hunter22@127.0.0.1:9000": "***",
        "127.0.0.1:9000": "127.0.0.1:9000",
    }.items(),
)
def test_an_endpoint_that_is_no_servers_address_is_refused_and_no_login_is_printed(
    name: str, endpoint: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, endpoint)
    for use in (lambda: files.size("s3://bucket/a"), lambda: files.ray_filesystem("s3://bucket")):
        with pytest.raises(StorageError, match=rf"^{name}={re.escape(told)}: expected .*; set AWS_ACCESS_KEY_ID"):
            use()


def test_the_store_of_an_address_that_cannot_be_reached_is_told_without_a_login(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unused_port: int, waits: list[float]
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "config"
    config.write_text(f"[default]\nendpoint_url = http://me:hunter22@127.0.0.1:{unused_port}\nregion = x\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with files.brief(), pytest.raises(StorageError, match=r"s3://bucket/a: the store could not be read .*@") as raised:
        files.size("s3://bucket/a")
    assert "hunter22" not in str(raised.value)


REQUESTS: dict[str, Callable[[], object]] = {
    "HEAD": lambda: files.size("s3://bucket/a"),
    "GET": lambda: files.list_prefix("s3://bucket"),
    "PUT": lambda: files.write_bytes("s3://bucket/b", DATA),
    "DELETE": lambda: files.delete("s3://bucket/a"),
}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Records the waits in seconds instead of sleeping."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.mark.parametrize("method", REQUESTS)
def test_requests_other_than_streams_are_tried_again_as_well(method: str, moto: Moto, waits: list[float]) -> None:
    moto.write("s3://bucket/a", DATA)
    moto.proxy.methods, moto.proxy.plan = {method}, [Fault("status", status=status) for status in (503, 500)]
    REQUESTS[method]()
    assert [request.status for request in moto.proxy.requests][:2] == [503, 500]
    assert len(moto.proxy.requests) == 3
    assert len(waits) == 2
    if method == "PUT":
        assert files.read_bytes("s3://bucket/b") == DATA


@pytest.mark.parametrize("method", REQUESTS)
def test_requests_other_than_streams_are_given_up_too(method: str, moto: Moto, waits: list[float]) -> None:
    moto.write("s3://bucket/a", DATA)
    for status, requests in ((503, s3.MAX_ATTEMPTS), (403, 1)):
        moto.proxy.requests.clear()
        moto.proxy.methods, moto.proxy.plan = {method}, [Fault("status", status=status)] * 50
        with pytest.raises(StorageError, match=f"s3://bucket.*: .* answered {status}"):
            REQUESTS[method]()
        assert len(moto.proxy.requests) == requests
    assert max(waits) <= 20


def test_no_connection_is_waited_for_for_ever(s3_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks the settings: loopback cannot simulate a server that accepts no connection.

    test_resuming.py tests a silent server.
    """
    monkeypatch.setattr(resuming, "CONNECT_TIMEOUT_S", 3.5)
    for client in (s3._client(), s3._client(attempts=1)):
        assert (client.meta.config.connect_timeout, client.meta.config.read_timeout) == (3.5, resuming.READ_TIMEOUT_S)


def test_after_a_fork_both_processes_read(s3_folder: Path) -> None:
    (s3_folder / "bucket/a").write_bytes(DATA)
    with files.open_read("s3://bucket/a") as stream:
        assert stream.read(1000) == DATA[:1000]
        context = multiprocessing.get_context("fork")
        receiving, sending = context.Pipe(duplex=False)

        def read() -> None:
            sending.send((files.read_bytes("s3://bucket/a"), id(s3._client(attempts=1))))

        child = context.Process(target=read)
        child.start()
        assert receiving.poll(60)
        data, client = receiving.recv()
        child.join()
        assert data == DATA
        assert client != id(s3._client(attempts=1)), "the parent's connections were used"
        assert stream.read() == DATA[1000:]


def test_many_parts_are_read_over_one_connection(s3_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.awsrequest import AWSHTTPConnection

    (s3_folder / "bucket/a").write_bytes(DATA)
    opened: list[object] = []
    connect = AWSHTTPConnection.connect

    def counting(connection: object) -> None:
        opened.append(connection)
        connect(connection)

    monkeypatch.setattr(AWSHTTPConnection, "connect", counting)
    for start in range(0, 100_000, 10_000):
        with files.open_range("s3://bucket/a", start, 10_000) as stream:
            assert stream.read() == DATA[start : start + 10_000]
    assert len(opened) == 1


def test_a_server_that_knows_if_none_match_keeps_a_second_writer_out(
    moto: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.address)
    assert files.excludes_others("s3://bucket/some/prefix")
    assert files.list_prefix("s3://bucket/some") == []


def test_a_server_that_ignores_if_none_match_is_found_out(s3_folder: Path) -> None:
    assert not files.excludes_others("s3://bucket/some/prefix")
    assert files.list_prefix("s3://bucket/some") == []
