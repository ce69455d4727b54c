"""The order in which two streams wait for each other, with fake streams; test_gpu.py uses CUDA's."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hst import plain
from hst.gpu import beside
from hst.model import build_classifier
from hst.side import extractor
from tests.hst.small_models import SMALL_HSN, small_backbone

CPU = torch.device("cpu")


class FakeStream:
    """Writes its calls to ``log``."""

    def __init__(self, name: str, log: list[tuple[Any, ...]]) -> None:
        self.name, self.log, self.events = name, log, 0

    def record_event(self) -> str:
        self.events += 1
        self.log.append((self.name, "records", self.events))
        return str(self.events)

    def wait_event(self, event: str) -> None:
        self.log.append((self.name, "waits for event", int(event)))

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append((self.name, "waits for", other.name))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The calls of two fake streams, in order."""
    entries: list[tuple[Any, ...]] = []

    @contextlib.contextmanager
    def stream(one: FakeStream) -> Iterator[None]:
        entries.append((one.name, "begins"))
        yield
        entries.append((one.name, "ends"))

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream("first", entries))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(beside, "_second_stream", lambda *_: FakeStream("second", entries))
    return entries


def test_the_side_network_waits_for_the_blocks_that_it_takes_and_the_head_for_it(
    log: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_classifier(small_backbone(), SMALL_HSN, num_classes=3)
    images = torch.randn(2, 3, 32, 32)
    want = model.predict(images)
    assert not log, "a CPU has no second stream"
    monkeypatch.setattr(extractor, "is_possible", lambda x: True)
    torch.testing.assert_close(model.predict(images), want, rtol=0, atol=0)
    assert log == [
        *(("first", "records", i) for i in (1, 2, 3, 4, 5)),
        ("second", "waits for event", 1),
        ("second", "begins"),
        *(("second", "waits for event", i) for i in (2, 3, 4, 5)),
        ("second", "ends"),
        ("first", "waits for", "second"),
    ]


def test_it_is_for_prediction_on_a_gpu_alone() -> None:
    on_gpu: Any = types.SimpleNamespace(device=torch.device("cuda"))
    with torch.no_grad():
        assert beside.is_possible(on_gpu)
        assert not beside.is_possible(torch.zeros(1))
        with plain.only():
            assert not beside.is_possible(on_gpu)
    assert not beside.is_possible(on_gpu)


def test_outputs_that_are_waited_for_are_a_mapping_as_before(log: list[tuple[Any, ...]]) -> None:
    one = beside.Beside(CPU)
    one.mark(3)
    tokens = one.waiting({3: torch.ones(1)})
    assert list(tokens) == [3]
    assert len(tokens) == 1
    assert torch.equal(tokens[3], torch.ones(1))
    assert log[-1] == ("second", "waits for event", 2)


def test_the_streams_meet_again_where_something_fails(log: list[tuple[Any, ...]]) -> None:
    def fails() -> None:
        with beside.Beside(CPU).running():
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert log[-1] == ("first", "waits for", "second")
