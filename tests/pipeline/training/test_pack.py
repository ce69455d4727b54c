"""Packed training equals training alone, whoever joins, leaves or fails meanwhile."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from hst.backbone import Backbone
from pipeline.data.errors import DataError
from pipeline.training.loop import fit
from pipeline.training.pack import Pack
from pipeline.training.task_run import NotFiniteError, RunState, TrainingError
from pipeline.training.unit import RunSpec, build_run
from pipeline.training.workers import Workers

Spec = Callable[..., RunSpec]
ONE = Workers()

UNITS: dict[str, dict[str, Any]] = {
    "long": {"batch_size": 4, "epochs": 5},
    "short": {"batch_size": 8, "epochs": 2, "learning_rate": 1e-3, "weight_decay": 0.3, "drop_path": 0.0},
    "late": {"batch_size": 8, "epochs": 7, "accumulation_steps": 2, "mixup": 0.8, "horizontal_flip": 0.5},
    "clipped": {"batch_size": 6, "epochs": 3, "clip_norm": 0.1, "head_input": "side+cls"},
}


def specs(tiny_spec: Spec, unit: str) -> list[RunSpec]:
    """A selection run and a final run; each unit has its own draws and memory mode."""
    made = [tiny_spec(kind, seed=list(UNITS).index(unit), **UNITS[unit]) for kind in ("selection", "final")]
    return [dataclasses.replace(spec, memory="memory" if unit == "short" else "speed") for spec in made]


def alone(tiny_spec: Spec, backbone: Backbone, unit: str) -> list[RunState]:
    runs = [build_run(spec, backbone, ONE) for spec in specs(tiny_spec, unit)]
    return fit(runs, workers=ONE, report=lambda *_: None)


def join(
    pack: Pack, tiny_spec: Spec, backbone: Backbone, unit: str, resume: list[dict[str, Any]] | None = None
) -> None:
    pack.join(unit, [build_run(spec, backbone, ONE) for spec in specs(tiny_spec, unit)], resume)


def steps(pack: Pack) -> Iterator[int]:
    """Steps until all units have finished; finished units leave."""
    for number in range(1000):
        yield number
        assert not pack.step()
        for unit, states in pack.units().items():
            if all(state.finished for state in states):
                pack.leave(unit)
        if not len(pack):
            return
    raise AssertionError("the pack does not end")


def assert_equal(packed: list[RunState], single: list[RunState]) -> None:
    for one, other in zip(packed, single, strict=True):
        theirs = other.run.model.state_dict()
        for name, value in one.run.model.state_dict().items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-8, atol=1e-8, msg=name)
        for row, expected in zip(one.history, other.history, strict=True):
            assert row.keys() == expected.keys()
            assert row["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-8)
        assert one.results["metrics"] == other.results["metrics"]
        confusion = [key for key in other.results if key.startswith("confusion/")]
        assert confusion
        assert all(one.results[key] == other.results[key] for key in confusion)


def test_units_that_join_and_leave_come_to_what_each_comes_to_alone(tiny_spec: Spec, tiny_backbone: Backbone) -> None:
    backbone = tiny_backbone.double()
    pack = Pack(ONE)
    for unit in ("long", "short", "clipped"):
        join(pack, tiny_spec, backbone, unit)
    states, together = pack.units(), set()
    for number in steps(pack):
        if number == 7:
            join(pack, tiny_spec, backbone, "late")
            states |= pack.units()
        together.add(frozenset(pack.units()))
    assert len(together) > 3, "packs of several makes"
    assert states["long"][0].history[-1]["epoch"] == 5
    for unit, own in states.items():
        assert_equal(own, alone(tiny_spec, backbone, unit))


def test_a_unit_goes_on_in_another_pack_or_alone_from_any_step(tiny_spec: Spec, tiny_backbone: Backbone) -> None:
    backbone = tiny_backbone.double()
    expected = alone(tiny_spec, backbone, "long")
    pack = Pack(ONE)
    for unit in ("late", "long"):
        join(pack, tiny_spec, backbone, unit)
    for _ in range(12):
        assert not pack.step()
    saved = [copy.deepcopy(state.state_dict()) for state in pack.sync("long")]
    assert [state["cursor"] for state in saved] == [{"epoch": 1, "position": 12}, {"epoch": 1, "position": 16}]
    pack.leave("long")
    runs = [build_run(spec, backbone, ONE) for spec in specs(tiny_spec, "long")]
    assert_equal(fit(runs, workers=ONE, report=lambda *_: None, resume=copy.deepcopy(saved)), expected)
    other = Pack(ONE)
    join(other, tiny_spec, backbone, "long", saved)
    join(other, tiny_spec, backbone, "clipped")
    states = other.units()["long"]
    for _ in steps(other):
        pass
    assert_equal(states, expected)


def test_a_unit_whose_loss_is_no_number_leaves_and_the_others_do_not_notice(
    tiny_spec: Spec, tiny_backbone: Backbone
) -> None:
    backbone = tiny_backbone.double()
    pack = Pack(ONE)
    join(pack, tiny_spec, backbone, "long")
    broken = build_run(tiny_spec(batch_size=4, epochs=3), backbone, ONE)
    with torch.no_grad():
        for parameter in broken.model.parameters():  # also those in the ViT
            parameter.fill_(float("nan"))
    pack.join("broken", [broken])
    states = pack.units()["long"]
    failed: dict[str, Exception] = {}
    while not all(state.finished for state in states):
        failed |= pack.step()
    assert list(pack.units()) == ["long"]
    assert list(failed) == ["broken"]
    assert isinstance(failed["broken"], NotFiniteError)
    assert_equal(states, alone(tiny_spec, backbone, "long"))


def test_a_unit_whose_data_cannot_be_read_leaves_at_once(
    tiny_spec: Spec, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny_backbone.double()
    pack = Pack(ONE)
    for unit in ("short", "long"):
        join(pack, tiny_spec, backbone, unit)
    train = pack.units()["short"][1].run.train
    read = train.train_batches

    def second_is_broken(**options: Any) -> Iterator[Any]:
        yield next(read(**options))
        raise DataError("a shard is broken")

    monkeypatch.setattr(train, "train_batches", second_is_broken)
    assert not pack.step()
    failed = pack.step()
    assert list(failed) == ["short"]
    assert isinstance(failed["short"], DataError)
    states = pack.units()["long"]
    for _ in steps(pack):
        pass
    assert_equal(states, alone(tiny_spec, backbone, "long"))


def test_seconds_are_divided_by_images(tiny_spec: Spec, tiny_backbone: Backbone) -> None:
    backbone = tiny_backbone.double()
    pack = Pack(Workers(device_share=0.5))
    pack.join("many", [build_run(tiny_spec(batch_size=16, epochs=1), backbone, ONE)])
    pack.join("few", [build_run(tiny_spec(batch_size=4, epochs=1, accumulation_steps=2), backbone, ONE)])
    pack.step()
    (many,), (few,) = pack.units().values()
    assert (many.device_part, few.device_part) == (0.8, 0.2)
    for state in (many, few):
        assert state.device_seconds == pytest.approx(state.epoch_seconds * 0.5 * state.device_part)
        assert state.device_seconds > 0


def test_what_cannot_be_packed_is_refused(tiny_spec: Spec, tiny_backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="2 workers: a pack is trained by one"):
        Pack(Workers(size=2))
    pack = Pack(ONE)
    backbone = tiny_backbone.double()
    join(pack, tiny_spec, backbone, "long")
    with pytest.raises(ValueError, match="long: is in the pack already"):
        join(pack, tiny_spec, backbone, "long")
    with pytest.raises(TrainingError, match="does not divide the batch"):
        pack.join("other", [build_run(tiny_spec(accumulation_steps=3), backbone, ONE)])
    assert list(pack.units()) == ["long"]
