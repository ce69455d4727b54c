"""An address at which no Ray answers is told within seconds."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pipeline.cluster import answering
from pipeline.cluster.answering import RayUnavailableError, check_answers


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port at which something listens on all of this machine's own addresses, and never answers."""
    with socket.socket() as silent:
        silent.bind((answering.services.get_node_ip_address(), 0))
        silent.listen()
        yield silent.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_port_at_which_nobody_listens(scheme: str, unused_port: int) -> None:
    with pytest.raises(RayUnavailableError, match=rf"RAY_ADDRESS={scheme}127.0.0.1:{unused_port}: no Ray .*refused"):
        check_answers(f"{scheme}127.0.0.1:{unused_port}")


def test_a_host_that_nobody_knows() -> None:
    with pytest.raises(RayUnavailableError, match=r"nosuchhost\.invalid:6379: no Ray answers there"):
        check_answers("nosuchhost.invalid:6379")


def test_something_that_listens_and_does_not_answer(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "ANSWER_S", 0.5)
    with pytest.raises(RayUnavailableError, match=r"it is silent for 0\.5 s\); expected HOST:PORT of a running"):
        check_answers(f"127.0.0.1:{silent_port}")


@pytest.mark.parametrize("address", ["127.0.0.1", "http://host:8265", "ray://head", "ray://"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(RayUnavailableError, match="expected HOST:PORT"):
        check_answers(address)


def test_a_login_in_an_address_is_not_repeated(unused_port: int) -> None:
    with pytest.raises(RayUnavailableError) as raised:
        check_answers(f"ray://someone:hunter22@127.0.0.1:{unused_port}")
    assert "hunter22" not in str(raised.value)
