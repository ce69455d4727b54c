"""Training with recordings equals training without them to the bit: values, gradients and statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hst.backbone import Backbone
from hst.gpu.recorded import Recorder, Tensors, Work
from pipeline.training import computing
from pipeline.training.loop import fit
from pipeline.training.pack import Pack
from pipeline.training.task_run import RunState
from pipeline.training.unit import RunSpec, build_run
from pipeline.training.workers import Workers
from tests.hst.gpu.test_recorded import Rerun

Spec = Callable[..., RunSpec]
ONE = Workers()
CASES: dict[str, dict[str, Any]] = {
    "plain": {"batch_size": 4, "epochs": 3},
    "soft targets, no drop-path": {"batch_size": 4, "epochs": 3, "mixup": 0.8, "drop_path": 0.0},
    "parts of a step": {"batch_size": 8, "epochs": 6, "accumulation_steps": 2},
    "clipped": {"batch_size": 4, "epochs": 3, "clip_norm": 0.1, "head_input": "side+cls"},
}


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Rerun]:
    """Turns recording on for a CPU as well, and lists what is recorded."""
    made: list[Rerun] = []

    def record(work: Work, inputs: Tensors) -> Rerun:
        made.append(Rerun(work, inputs))
        return made[-1]

    monkeypatch.setattr(computing, "Recorder", lambda device: Recorder(device, record=record))
    return made


def runs(tiny_spec: Spec, backbone: Backbone, case: str) -> list[Any]:
    return [build_run(tiny_spec(kind, **CASES[case]), backbone.double(), ONE) for kind in ("selection", "final")]


def assert_same(got: list[RunState], want: list[RunState]) -> None:
    for one, other in zip(got, want, strict=True):
        own, theirs = one.run.model.state_dict(), other.run.model.state_dict()
        assert all(torch.equal(own[name], theirs[name]) for name in theirs)
        assert one.results["metrics"] == other.results["metrics"]
        assert [row["train/loss"] for row in one.history] == [row["train/loss"] for row in other.history]


@pytest.mark.parametrize("case", CASES)
def test_alone(case: str, tiny_spec: Spec, tiny_backbone: Backbone, request: pytest.FixtureRequest) -> None:
    want = fit(runs(tiny_spec, tiny_backbone, case), workers=ONE, report=lambda *_: None)
    recordings = request.getfixturevalue("recordings")
    got = fit(runs(tiny_spec, tiny_backbone, case), workers=ONE, report=lambda *_: None)
    assert recordings
    assert_same(got, want)


def test_in_a_pack_that_keeps_nothing_of_units_that_have_left(
    tiny_spec: Spec, tiny_backbone: Backbone, request: pytest.FixtureRequest
) -> None:
    def packed() -> tuple[Pack, list[RunState]]:
        pack = Pack(ONE)
        for case in ("plain", "parts of a step"):
            pack.join(case, runs(tiny_spec, tiny_backbone, case))
        states = [state for of_unit in pack.units().values() for state in of_unit]
        while len(pack):
            assert not pack.step()
            for unit, own in pack.units().items():
                if all(state.finished for state in own):
                    pack.leave(unit)
        return pack, states

    _, want = packed()
    recordings = request.getfixturevalue("recordings")
    pack, got = packed()
    assert recordings
    assert_same(got, want)
    assert not pack._computer._recorder._recordings
