"""How long callers wait for an MLflow that is away, and the error that they get."""

from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from pipeline.tracking import mlflow_client
from pipeline.tracking.mlflow_client import (
    GLANCE_S,
    PATIENCE_S,
    MlflowAwayError,
    Patience,
    TrackingError,
    check_tracking_uri,
    in_one_line,
    open_client,
    pauses,
    persistently,
)

LOGIN = "someone:hunter22"


@pytest.mark.parametrize(
    "uri",
    [
        f"postgresql://{LOGIN}@host/db",
        f"mysql+pymysql://{LOGIN}@host/db?charset=utf8",
        f"file://{LOGIN}@/folder",
        "http://someone:hunter22/2@host",
        "http://someone:12/hunter22@host",
        "http://someone:12#hunter22@host",
        "http://someone:hunter22 hunter22@host",
        f"{LOGIN}@host:5000",
        f"http:/{LOGIN}@host:5000",
        "http://[::1",
        "http://",
    ],
)
def test_a_tracking_uri_that_is_refused_is_told_without_its_login(uri: str) -> None:
    with pytest.raises(TrackingError, match="expected http") as raised:
        check_tracking_uri(uri)
    assert "hunter22" not in str(raised.value)


@pytest.mark.parametrize("uri", [f"http://{LOGIN}@host", f"https://{LOGIN}@[::1]:5000/path", "sqlite:////a@b/x.db"])
def test_a_tracking_uri_may_have_a_login(uri: str) -> None:
    check_tracking_uri(uri)


def test_an_mlflow_that_is_away_is_told_without_its_login(unused_port: int) -> None:
    uri = f"http://{LOGIN}@127.0.0.1:{unused_port}"
    client = open_client(uri)
    with pytest.raises(MlflowAwayError, match=r"^MLflow at http://\*\*\*@127.0.0.1:\d+ did not") as raised:
        persistently(client.search_experiments, tracking_uri=uri, patience=Patience(0))
    assert "hunter22" not in str(raised.value)
    with pytest.raises(MlflowException, match="hunter22") as refused:  # as MLflow says it
        client.search_experiments()
    without_cause = type(refused.value)(str(refused.value))
    assert "http://***@127.0.0.1" in in_one_line(without_cause)
    assert "hunter22" not in in_one_line(without_cause)


def test_who_comes_late_waits_with_the_others_and_at_least_looks() -> None:
    patience = Patience()
    assert patience.deadline(1000.0) == 1000.0 + PATIENCE_S
    patience.missed(1000.0)
    patience.missed(1030.0)
    assert patience.deadline(1040.0) == 1000.0 + PATIENCE_S
    assert patience.deadline(9000.0) == 9000.0 + GLANCE_S
    patience.answered()
    assert patience.deadline(9000.0) == 9000.0 + PATIENCE_S


def test_a_look_is_longer_than_the_pause_between_two_attempts() -> None:
    steps = pauses()
    assert max(next(steps) for _ in range(50)) < GLANCE_S < PATIENCE_S


def test_little_patience_is_not_made_more_by_the_look() -> None:
    assert Patience(0.5).deadline(1000.0) == 1000.5


class Clock:
    """A clock on which time passes only during sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(mlflow_client.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(mlflow_client.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_all_together_wait_once_for_an_mlflow_that_is_away_for_good(clock: Clock) -> None:
    patience = Patience()

    def ask() -> None:
        raise ConnectionRefusedError("nobody there")

    for most in (PATIENCE_S, GLANCE_S, GLANCE_S):
        begun = clock.now
        with pytest.raises(
            MlflowAwayError, match=r"^MLflow at http://x:1 did not answer within 120 s \(Conn.* there\)$"
        ):
            persistently(ask, tracking_uri="http://x:1", patience=patience)
        assert 0 < clock.now - begun <= most


def test_an_mlflow_that_comes_back_is_waited_for_anew(clock: Clock) -> None:
    patience = Patience()
    faults: list[Exception] = [ConnectionRefusedError("nobody there")] * 8

    def ask() -> str:
        if faults:
            raise faults.pop()
        return "answer"

    for _ in range(5):
        assert persistently(ask, tracking_uri="http://x:1", patience=patience) == "answer"
        faults += [ConnectionRefusedError("nobody there")] * 8
    assert clock.now > PATIENCE_S


def test_what_mlflow_refuses_is_not_asked_again(clock: Clock) -> None:
    asked: list[int] = []

    def ask() -> Any:
        asked.append(1)
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        persistently(ask, tracking_uri="http://x:1")
    assert len(asked) == 1


def test_a_fault_is_told_by_what_the_system_said() -> None:
    with pytest.raises(Exception, match="Max retries") as caught:
        open_client("http://127.0.0.1:9").get_experiment_by_name("hst")
    assert in_one_line(caught.value) == "ConnectionRefusedError: [Errno 111] Connection refused"
    assert in_one_line(ValueError("first\nsecond")) == "ValueError: first"
