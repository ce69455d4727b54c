"""Tests what is recorded and when, with a fake recording that runs the work again; test_gpu.py tests CUDA's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from hst import plain
from hst.gpu import recorded
from hst.gpu.recorded import AFTER, MOST, Recorder, Tensors, Work

CPU = torch.device("cpu")


class Rerun:
    """A fake recording. As in CUDA's, inputs and outputs have fixed memory."""

    def __init__(self, work: Work, inputs: Tensors) -> None:
        self._work, self._inputs = work, inputs
        self._outputs: Any = None

    def replay(self) -> Any:
        found = self._work(*self._inputs)
        if self._outputs is None:
            self._outputs = tree_map_only(torch.Tensor, torch.clone, found)
        for own, x in zip(tree_leaves(self._outputs), tree_leaves(found), strict=True):
            if own is not None:
                own.copy_(x)
        return self._outputs


class Counted:
    """Counts the recordings that are made."""

    def __init__(self) -> None:
        self.recordings = 0
        self.recorder = Recorder(CPU, record=self._record)

    def _record(self, work: Work, inputs: Tensors) -> Rerun:
        self.recordings += 1
        return Rerun(work, inputs)

    def twice(self, x: torch.Tensor, owner: str = "a", kind: Any = None) -> torch.Tensor:
        (found, nothing) = self.recorder.run([owner], kind, lambda x, _: [2 * x, None], [x, None])
        assert found is not None
        assert nothing is None
        return found


def test_what_comes_again_is_recorded_and_done_with_what_comes_in() -> None:
    counted = Counted()
    for i in range(AFTER + 3):
        torch.testing.assert_close(counted.twice(torch.full((2,), float(i))), torch.full((2,), 2.0 * i))
        assert counted.recordings == (i >= AFTER)
    a, b = counted.twice(torch.ones(2)), counted.twice(torch.zeros(2))
    assert a is b, "a replay writes to the same outputs"


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.ones(3)},
        {"x": torch.ones(2, dtype=torch.float64)},
        {"x": torch.ones(2), "owner": "b"},
        {"x": torch.ones(2), "kind": 1},
    ],
)
def test_another_shape_type_owner_or_kind_is_another_recording(other: dict[str, Any]) -> None:
    counted = Counted()
    for _ in range(AFTER + 1):
        counted.twice(torch.ones(2))
    for _ in range(AFTER):
        counted.twice(**other)
    assert counted.recordings == 1
    counted.twice(**other)
    assert counted.recordings == 2


def test_the_latest_used_are_kept() -> None:
    counted = Counted()

    def often(kind: int) -> None:
        for _ in range(AFTER + 1):
            counted.twice(torch.ones(2), kind=kind)

    for kind in range(MOST):
        often(kind)
    counted.twice(torch.ones(2), kind=0)
    often(MOST)
    assert counted.recordings == MOST + 1
    counted.twice(torch.ones(2), kind=0)
    assert counted.recordings == MOST + 1
    often(1)
    assert counted.recordings == MOST + 2


def test_what_is_forgotten_is_recorded_anew_and_its_owner_free() -> None:
    counted = Counted()
    for owner in ("a", "b"):
        for _ in range(AFTER + 1):
            counted.twice(torch.ones(2), owner)
    counted.twice(torch.ones(3), "a")
    counted.recorder.forget("a")
    assert not any("a" in key[0] for key in (*counted.recorder._seen, *counted.recorder._recordings))
    counted.twice(torch.ones(2), "b")
    assert counted.recordings == 2
    for _ in range(AFTER + 1):
        counted.twice(torch.ones(2), "a")
    assert counted.recordings == 3


def test_on_a_cpu_and_the_plain_way_nothing_is_recorded() -> None:
    counted = Counted()
    with plain.only():
        for _ in range(AFTER + 2):
            counted.twice(torch.ones(2))
    assert counted.recordings == 0
    assert Recorder(CPU)._record is None


def test_where_recording_fails_it_is_told_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted()

    def fails(work: Work, inputs: Tensors) -> Rerun:
        counted.recordings += 1
        raise RuntimeError("operation not permitted when stream is capturing")

    counted.recorder._record = fails
    for _ in range(AFTER):
        counted.twice(torch.ones(2))
    with pytest.warns(UserWarning, match="could not be recorded; going on without any: operation not permitted"):
        torch.testing.assert_close(counted.twice(torch.ones(2)), torch.full((2,), 2.0))
    for _ in range(AFTER + 2):
        torch.testing.assert_close(counted.twice(torch.zeros(2)), torch.zeros(2))
    assert counted.recordings == 1


def test_where_memory_runs_out_recordings_go_and_it_is_done_again() -> None:
    counted = Counted()
    for _ in range(AFTER + 1):
        counted.twice(torch.ones(2))

    def once(x: torch.Tensor) -> Tensors:
        if counted.recorder._recordings:
            raise torch.OutOfMemoryError
        return [x]

    (found,) = counted.recorder.run(["b"], "large", once, [torch.ones(3)])
    assert found is not None
    assert not counted.recorder._recordings
    assert not counted.recorder._inputs

    def never(x: torch.Tensor) -> Tensors:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        counted.recorder.run(["b"], "larger", never, [torch.ones(3)])


def test_recordings_share_the_memory_of_what_goes_in() -> None:
    counted = Counted()
    for kind in range(3):
        for i in range(AFTER + 2):
            torch.testing.assert_close(counted.twice(torch.full((2,), float(i)), kind=kind), torch.full((2,), 2.0 * i))
    assert len(counted.recorder._recordings) == 3
    assert len(counted.recorder._inputs) == 1


def test_what_was_seen_once_is_not_remembered_for_ever() -> None:
    counted = Counted()
    for kind in range(recorded.MOST_SEEN + 10):
        counted.twice(torch.ones(2), kind=kind)
    assert len(counted.recorder._seen) <= recorded.MOST_SEEN
