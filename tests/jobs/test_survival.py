"""The main job is killed without warning, and the same command ends as if nothing had happened."""

import signal
import subprocess
from pathlib import Path

import pytest

from pipeline.data.demo import make_demo_data
from pipeline.training import checkpoints
from tests.jobs.fanout_process import (
    ROOT,
    assert_equal,
    command,
    environment,
    run,
    tensors,
    wait_for_epochs,
)

EPOCHS = 12

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]


def test_a_driver_that_is_killed_loses_nothing_that_was_reported(tmp_path: Path) -> None:
    make_demo_data(tmp_path / "data")
    words = command(tmp_path, "disturbed", epochs=EPOCHS)
    with subprocess.Popen(
        words, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    ) as driver:
        wait_for_epochs(driver, tmp_path / "disturbed", 2)
        driver.send_signal(signal.SIGKILL)
    status = run(tmp_path, [*words, "--status"])
    assert status.returncode == 0, status.stderr
    assert "demo-digits  interrupted" in status.stdout
    assert f"of {EPOCHS} epochs" in status.stdout

    again = run(tmp_path, words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "demo-digits: going on after" in again.stdout
    whole = run(tmp_path, command(tmp_path, "whole", epochs=EPOCHS))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert_equal(tensors(tmp_path / "disturbed"), tensors(tmp_path / "whole"))

    once_more = run(tmp_path, words)
    assert once_more.returncode == 0
    assert "demo-digits: trained before, not again" in once_more.stdout
    assert "demo-digits  done" in run(tmp_path, [*words, "--status"]).stdout
    assert not checkpoints.find(str(tmp_path / "disturbed/train")), "a finished unit keeps no checkpoints"
