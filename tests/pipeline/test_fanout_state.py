"""The state of a fan-out, from storage alone: also of one whose driver is dead."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from pipeline import lease, storage
from pipeline.fanout_state import FanoutState, read_states, states_table
from pipeline.lease import Owner


@pytest.fixture
def state(tmp_path: Path) -> FanoutState:
    state = FanoutState(str(tmp_path), "0123456789abcdef")
    state.begin("2 tasks on some_vit, seed 0", ["vtab-dtd", "vtab-cifar100"])
    return state


def stages(folder: Path) -> dict[str, tuple[str, str]]:
    (report,) = read_states(str(folder))
    return {task.task: (task.stage, task.detail) for task in report.tasks}


def save_progress(folder: Path, epochs: int) -> None:
    folder.mkdir(parents=True)
    (folder / "complete.json").write_text(json.dumps({"progress": [2 * epochs, 0], "runs": 2}))


def test_tasks_go_through_their_stages(state: FanoutState, tmp_path: Path) -> None:
    assert stages(tmp_path) == {"vtab-dtd": ("waiting", ""), "vtab-cifar100": ("waiting", "")}
    state.set("vtab-dtd", "shards")
    assert stages(tmp_path)["vtab-dtd"] == ("shards", "")
    state.set("vtab-dtd", "done", val=0.5, test=0.625, version=3)
    state.set("vtab-cifar100", "failed", error="no data\nlooked at ...")
    assert stages(tmp_path) == {
        "vtab-dtd": ("done", "val 50.0%, test 62.5%, version 3"),
        "vtab-cifar100": ("failed", "no data"),
    }
    state.set("vtab-dtd", "done", val=None, test=0.625, version=3)
    assert stages(tmp_path)["vtab-dtd"] == ("done", "test 62.5%, version 3")
    with pytest.raises(ValueError, match="expected one of waiting, shards"):
        state.set("vtab-dtd", "lunch")


def test_a_training_says_how_far_it_is_and_whose_it_is(state: FanoutState, tmp_path: Path) -> None:
    unit, held = tmp_path / "unit", str(tmp_path / "lease")
    state.set("vtab-dtd", "training", unit=str(unit), lease=held, epochs=10)
    assert stages(tmp_path)["vtab-dtd"] == ("training", "nothing saved yet")
    save_progress(unit / "0001-0/checkpoint_1", 3)
    save_progress(unit / "0001-0/checkpoint_2", 4)
    with lease.hold(held) as own:
        assert own is not None
        detail = f"saved after 4 of 10 epochs; process {os.getpid()} on {own.owner.host}, attempt 1"
        assert stages(tmp_path)["vtab-dtd"] == ("training", detail)


def test_a_training_whose_driver_is_dead_is_interrupted(state: FanoutState, tmp_path: Path) -> None:
    held = str(tmp_path / "lease")
    owner = dataclasses.replace(Owner.of_this_process(), started=1)
    storage.write_bytes(f"{held}/000001.json", json.dumps(vars(owner)).encode())
    state.set("vtab-dtd", "training", unit=str(tmp_path / "unit"), lease=held, epochs=10)
    assert stages(tmp_path)["vtab-dtd"] == ("interrupted", f"nothing saved yet; {owner} is gone")


def test_the_latest_fan_out_is_shown_first(tmp_path: Path) -> None:
    for key, what in (("a" * 16, "the first"), ("b" * 16, "the second"), ("a" * 16, "the first, again")):
        FanoutState(str(tmp_path), key).begin(what, ["vtab-dtd"])
    assert [report.what for report in read_states(str(tmp_path))] == ["the first, again", "the second"]
    text = states_table(read_states(str(tmp_path)))
    assert text.startswith("fan-out aaaaaaaa, begun 20")
    assert "vtab-dtd  waiting  20" in text


def test_a_storage_without_fan_outs_has_none(tmp_path: Path) -> None:
    assert read_states(str(tmp_path)) == []


def test_a_state_that_cannot_be_written_fails_no_task(tmp_path: Path) -> None:
    (tmp_path / "fanouts").write_text("a file where the folder should be")
    said: list[str] = []
    FanoutState(str(tmp_path), "0123456789abcdef", said.append).set("vtab-dtd", "shards")
    assert "vtab-dtd: its state could not be written" in said[0]
