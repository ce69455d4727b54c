"""One worker and two or three train the same model: float64, 20 steps and more, parameters and buffers."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.training.unit import RunSpec


def train_together(size: int, spec: RunSpec, folder: Path) -> tuple[dict[str, torch.Tensor], list[dict], dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spec_file, out = folder / f"spec-{size}.json", folder / f"out-{size}.pt"
    spec_file.write_text(json.dumps(spec.to_dict()))
    script = Path(__file__).with_name("worker_process.py")
    command = [str(size), str(port), str(spec_file), str(out)]
    processes = [subprocess.Popen([sys.executable, str(script), str(rank), *command]) for rank in range(size)]
    assert [process.wait(timeout=100) for process in processes] == [0] * size
    return torch.load(out, weights_only=True)


AUGMENTED = {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5, "horizontal_flip": 0.5, "eval_crop": 0.875}


@pytest.mark.parametrize(
    ("recipe", "sizes"),
    [
        ({}, (2, 3)),
        ({"accumulation_steps": 2, "clip_norm": 0.5}, (2,)),
        (AUGMENTED, (2, 3)),
        ({**AUGMENTED, "accumulation_steps": 2}, (2,)),
    ],
)
def test_the_number_of_workers_does_not_change_what_is_trained(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path, recipe: dict[str, object], sizes: tuple[int, ...]
) -> None:
    spec = tiny_spec(epochs=10, **recipe)  # 23 images in batches of 8: two steps an epoch
    one, history, results = train_together(1, spec, tmp_path)
    assert one["head.norm.num_batches_tracked"] == 20 * spec.recipe["accumulation_steps"]
    for size in sizes:
        several, several_history, several_results = train_together(size, spec, tmp_path)
        assert several.keys() == one.keys()
        for name, value in one.items():
            torch.testing.assert_close(
                several[name], value, rtol=1e-10, atol=1e-10, msg=f"{name} differs with {size} workers"
            )
        for row, other in zip(history, several_history, strict=True):
            assert other["train/loss"] == pytest.approx(row["train/loss"], rel=1e-10)
        assert several_results["confusion/val"] == results["confusion/val"]
        assert sum(map(sum, several_results["confusion/val"])) == 9  # uneven over the workers, each once
