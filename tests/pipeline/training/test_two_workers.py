"""One worker and several train the same model, and resume where others stopped: float64, parameters and buffers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.training import checkpoints
from pipeline.training.unit import RunSpec


def trained_by(spec: RunSpec, folder: Path, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The state in which each group of workers (see worker_process.py) ends; `start` is an earlier group's number."""
    folders = [str(folder / str(number)) for number in range(len(groups))]
    plan = [
        {"stop": None, **group, "folder": own, "start": folders[group["start"]] if "start" in group else None}
        for own, group in zip(folders, groups, strict=True)
    ]
    (folder / "spec.json").write_text(json.dumps(spec.to_dict()))
    (folder / "groups.json").write_text(json.dumps(plan))
    script = Path(__file__).with_name("worker_process.py")
    command = [sys.executable, str(script), str(folder / "spec.json"), str(folder / "groups.json")]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        assert process.wait(timeout=110) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # some ranks may wait for one that is gone
    found = [checkpoints.find(own) for own in folders]
    return [checkpoint.states()[0] for checkpoint in found if checkpoint is not None]


def assert_same_training(one: dict[str, Any], other: dict[str, Any], how: str) -> None:
    assert other["model"].keys() == one["model"].keys()
    for name, value in one["model"].items():
        # The gradient of the last stage norm's bias is only rounding; AdamW turns it into steps of some 1e-10.
        torch.testing.assert_close(other["model"][name], value, rtol=1e-10, atol=1e-9, msg=f"{name} differs {how}")
    for row, its in zip(one["history"], other["history"], strict=True):
        assert its["train/loss"] == pytest.approx(row["train/loss"], rel=1e-10)
    assert other["results"]["confusion/val"] == one["results"]["confusion/val"]
    assert sum(map(sum, other["results"]["confusion/val"])) == 9  # uneven over the workers; each image counts once


AUGMENTED = {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5, "horizontal_flip": 0.5, "eval_crop": 0.875}


@pytest.mark.parametrize(
    ("recipe", "sizes"),
    [
        ({}, (2, 3)),
        pytest.param({"accumulation_steps": 2, "clip_norm": 0.5}, (2,), marks=pytest.mark.slow),
        pytest.param(AUGMENTED, (2, 3), marks=pytest.mark.slow),
        ({**AUGMENTED, "accumulation_steps": 2}, (2,)),
    ],
)
def test_the_number_of_workers_does_not_change_what_is_trained(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path, recipe: dict[str, object], sizes: tuple[int, ...]
) -> None:
    spec = tiny_spec(epochs=10, **recipe)  # 23 images in batches of 8: two steps an epoch
    one, *others = trained_by(spec, tmp_path, [{"size": size} for size in (1, *sizes)])
    assert one["model"]["head.norm.num_batches_tracked"] == 20 * spec.recipe["accumulation_steps"]
    for size, several in zip(sizes, others, strict=True):
        assert_same_training(one, several, f"with {size} workers")


@pytest.mark.parametrize(
    ("sizes", "stops", "epochs"),
    [((4, 2, 3), ([0, 3], [1, 2]), 3), ((2, 1, 2), ([1, 2], [2, 3]), 4)],
    ids=["4 -> 2 -> 3", "2 -> 1 -> 2"],
)
def test_a_run_that_goes_on_with_other_numbers_of_workers_trains_on_each_image_once_an_epoch(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path, sizes: tuple[int, ...], stops: tuple[list[int], ...], epochs: int
) -> None:
    """It stops in the middle of an epoch (5 steps of 4 images). Three workers have uneven shares of 4 images."""
    first, second, third = sizes
    groups: list[dict[str, Any]] = [
        {"size": 1},
        {"size": first, "stop": stops[0]},
        {"size": second, "stop": stops[1], "start": 1},
        {"size": third, "start": 2},
    ]
    whole, *stopped, last = trained_by(tiny_spec(batch_size=4, epochs=epochs), tmp_path, groups)
    expected = [{"epoch": epoch, "position": 4 * steps} for epoch, steps in stops]
    assert [state["cursor"] for state in stopped] == expected
    assert_same_training(whole, last, f"after {sizes} workers")
    assert last["model"]["head.norm.num_batches_tracked"] == 5 * epochs
