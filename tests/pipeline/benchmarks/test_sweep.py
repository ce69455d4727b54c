"""The benchmark of all of VTAB-1k extrapolates the right total from a part that runs through the training loop."""

import json
from pathlib import Path

import pytest

from pipeline.benchmarks import sweep

ARGUMENTS = ["--backbone", "vit_tiny_patch16_224", "--image-size", "32", "--batch-size", "2"]
PARTS = (("train", "train"), ("test", "eval"))


def test_the_whole_is_extrapolated_from_a_stated_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "sweep.json"
    arguments = ["--pack", "2", "--steps", "3", "--eval-batches", "2", "--output", str(output)]
    assert sweep.main([*ARGUMENTS, *arguments]) == 0
    report = json.loads(output.read_text())
    assert (report["steps"], report["eval_batches"], report["batch_size"]) == (3, 2, 2)
    alone, packed = report["rows"]
    assert (alone["tasks_a_pack"], packed["tasks_a_pack"]) == (1, 2)
    assert (alone["measured_train_images"], packed["measured_train_images"]) == (6, 12)
    assert alone["of_alone"] == 1
    for row in (alone, packed):
        assert row["train_images"] == 19 * 100 * 1000
        assert 380_000 < row["test_images"] < 390_000
        seconds = (
            row["train_images"] / row["train_images_per_second"] + row["test_images"] / row["eval_images_per_second"]
        )
        assert row["total_seconds"] == pytest.approx(seconds, rel=0.01)
    assert "all in about" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pack", "20"], "--pack 20: expected 1 to 19"),
        (["--steps", "0"], "--steps 0: expected at least 1"),
        (["--eval-batches", "0"], "--eval-batches 0: expected at least 1"),
        (["--batch-size", "1001"], "--batch-size 1001: expected 2 to 1000"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        sweep.main([*ARGUMENTS, *arguments, "--output", str(tmp_path / "out.json")])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
