"""The state of a fan-out, from storage alone: also of one whose driver is dead."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.tasks.kinds import Measure
from pipeline.workflow.state import FanoutState, done_tasks, read_states, states_table

OWNER = f"process {os.getpid()} on {socket.gethostname()}"


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
    assert stages(tmp_path) == {"vtab-dtd": ("waiting", OWNER), "vtab-cifar100": ("waiting", OWNER)}
    state.set("vtab-dtd", "shards")
    assert stages(tmp_path)["vtab-dtd"] == ("shards", OWNER)
    state.set("vtab-dtd", "done", val=0.5, test=0.625, version=3)
    state.set("vtab-cifar100", "failed", error="no data\nlooked at ...")
    assert stages(tmp_path) == {
        "vtab-dtd": ("done", "val 50.0%, test 62.5%, version 3"),
        "vtab-cifar100": ("failed", "no data"),
    }
    state.set("vtab-dtd", "done", val=None, test=0.625, version=3)
    assert stages(tmp_path)["vtab-dtd"] == ("done", "test 62.5%, version 3")
    state.set("vtab-dtd", "pending", val=0.5, test=0.625, version=None)
    assert stages(tmp_path)["vtab-dtd"] == ("pending", "val 50.0%, test 62.5%, not registered: MLflow did not answer")
    with pytest.raises(ValueError, match="expected one of waiting, shards"):
        state.set("vtab-dtd", "lunch")


def test_results_are_shown_by_the_measure_of_their_task(state: FanoutState, tmp_path: Path) -> None:
    measure = Measure(name="mae", unit="px", higher_is_better=False).to_dict()
    state.set("vtab-dtd", "done", val=0.213, test=0.25, measure=measure, version=3)
    state.set("vtab-cifar100", "searched", val=0.213, measure=measure, trials=8)
    assert stages(tmp_path) == {
        "vtab-dtd": ("done", "val 0.213 px, test 0.25 px, version 3"),
        "vtab-cifar100": ("searched", "8 trials, the best val 0.213 px"),
    }


def test_who_waits_for_the_registry_alone_has_nothing_left_to_train(state: FanoutState, tmp_path: Path) -> None:
    state.set("vtab-dtd", "pending", val=0.5, test=0.625, version=None)
    state.set("vtab-cifar100", "failed", error="no data")
    tasks = ["vtab-dtd", "vtab-cifar100", "vtab-svhn"]
    assert done_tasks(str(tmp_path), "0123456789abcdef", tasks) == {"vtab-dtd"}


def test_a_training_says_how_far_it_is(state: FanoutState, tmp_path: Path) -> None:
    unit = tmp_path / "unit"
    state.set("vtab-dtd", "training", unit=str(unit), epochs=10)
    assert stages(tmp_path)["vtab-dtd"] == ("training", f"nothing saved yet; {OWNER}")
    save_progress(unit / "0001-0/checkpoint_1", 3)
    save_progress(unit / "0001-0/checkpoint_2", 4)
    assert stages(tmp_path)["vtab-dtd"] == ("training", f"saved after 4 of 10 epochs; {OWNER}")


@pytest.mark.parametrize("stage", ["waiting", "shards", "training", "registering"])
def test_a_task_whose_driver_is_dead_is_interrupted_wherever_it_was(stage: str, tmp_path: Path) -> None:
    program = """if True:
        import os, signal, sys
        from pipeline.workflow.state import FanoutState
        state = FanoutState(sys.argv[1], "0123456789abcdef")
        state.begin("1 task", ["vtab-dtd"])
        state.set("vtab-dtd", sys.argv[2], unit=sys.argv[1] + "/unit", epochs=10)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), stage])
    assert killed.wait() == -signal.SIGKILL
    progress = "nothing saved yet; " if stage == "training" else ""
    gone = f"{progress}process {killed.pid} on {socket.gethostname()} is gone"
    assert stages(tmp_path)["vtab-dtd"] == ("interrupted", gone)


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


def test_where_the_driver_ends_what_has_not_ended_is_stopped(state: FanoutState, tmp_path: Path) -> None:
    state.set("vtab-dtd", "search", done=3, trials=10)
    state.set("vtab-cifar100", "failed", error="nan")
    state.stop()
    found = stages(tmp_path)
    assert found["vtab-dtd"] == ("stopped", "3 of 10 trials done")
    assert found["vtab-cifar100"] == ("failed", "nan")


def test_a_task_that_was_stopped_says_how_far_it_was(state: FanoutState, tmp_path: Path) -> None:
    state.set("vtab-dtd", "search", done=3, trials=10)
    state.set("vtab-dtd", "stopped", error="the driver was told to stop")
    assert stages(tmp_path)["vtab-dtd"] == ("stopped", "3 of 10 trials done")
    unit = tmp_path / "unit"
    state.set("vtab-dtd", "training", unit=str(unit), epochs=10)
    save_progress(unit / "0001-0/checkpoint_1", 3)
    state.set("vtab-dtd", "stopped")
    assert stages(tmp_path)["vtab-dtd"] == ("stopped", "saved after 3 of 10 epochs")
    state.set("vtab-cifar100", "stopped")
    assert stages(tmp_path)["vtab-cifar100"] == ("stopped", "")
