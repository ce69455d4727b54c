"""The benchmark of prediction measures all ways, and each way predicts every image."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.benchmarks import inference
from pipeline.benchmarks.methods import Setting

ARGUMENTS = ["--backbone", "vit_tiny_patch16_224", "--image-size", "32", "--rounds", "1", "--tasks", "3"]


def test_all_ways_are_measured_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results/inference.json"
    assert inference.main([*ARGUMENTS, "--batch-sizes", "1,4", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [(row["batch_size"], row["way"], row["tasks"]) for row in rows] == [
        (1, "vit", 1),
        (1, "hst", 1),
        (1, "mixed", 1),
        (1, "by task", 1),
        (4, "vit", 1),
        (4, "hst", 1),
        (4, "mixed", 3),
        (4, "by task", 3),
    ]
    assert all(row["images_per_second"] > 0 for row in rows)
    assert [row["of_vit"] for row in rows if row["way"] == "vit"] == [1, 1]
    assert all(row["paper_images_per_second"] is None for row in rows), "another ViT"
    assert "paper's img/s" in capsys.readouterr().out


def test_every_image_is_predicted_once_however_it_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(backbone="vit_tiny_patch16_224", image_size=32, num_classes=100, device=torch.device("cpu"))
    counts: list[int] = []
    monkeypatch.setattr(inference, "forward_tasks", lambda models, own: counts.extend(map(len, own)))
    inference.ways(setting, 3)["mixed"](torch.randn(8, 3, 32, 32))
    assert counts == [3, 3, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-sizes", "0"], "'0': expected numbers from 1 on"),
        (["--tasks", "0"], "--tasks 0: expected at least 1"),
        (["--rounds", "0"], "--rounds 0: expected at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        inference.main([*ARGUMENTS, *arguments, "--output", str(tmp_path / "out.json")])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_what_is_recorded_is_compared_with_a_recorded_vit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a GPU, where every way is measured both as it is and recorded."""
    took = {"vit": 4.0, "hst": 5.0, "vit recorded": 1.0, "hst recorded": 2.0}
    monkeypatch.setattr(inference, "ways", lambda *_, **__: dict.fromkeys(took, id))
    seconds = iter([*took.values()] * 2)
    monkeypatch.setattr(inference, "seconds_of", lambda *_: next(seconds))
    arguments = ["--backbone", "vit_base_patch16_224", "--rounds", "1", "--batch-sizes", "32", "--output"]
    assert inference.main([*arguments, str(tmp_path / "out.json")]) == 0
    rows = {row["way"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert {way: row["of_vit"] for way, row in rows.items()} == {
        "vit": 1,
        "hst": 0.8,
        "vit recorded": 1,
        "hst recorded": 0.5,
    }
    assert rows["hst recorded"]["paper_images_per_second"] == rows["hst"]["paper_images_per_second"] == 277
