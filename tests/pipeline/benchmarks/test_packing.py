"""The benchmark of packs: its counts are right, and its times exist."""

import json
from pathlib import Path

import pytest

from hst.backbone import load_backbone
from hst.config import HSN_PRESETS
from hst.model import build_classifier
from pipeline.benchmarks import packing

ARGUMENTS = ["--backbone", "vit_tiny_patch16_224", "--batch-size", "2", "--image-size", "32", "--rounds", "1"]


@pytest.mark.parametrize("memory", ["speed", "memory"])
def test_all_ways_are_measured_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str], memory: str) -> None:
    output = tmp_path / "results/packing.json"
    assert packing.main([*ARGUMENTS, "--tasks", "1,3", "--memory", memory, "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert [row["tasks"] for row in report["rows"]] == [1, 3]
    assert report["hardware"]
    ways = packing.WAYS if memory == "speed" else packing.WAYS[:2]
    for row in report["rows"]:
        assert all(row[f"{way}_images_per_second"] > 0 for way in ways)
        assert row["alone_of_alone"] == 1
        assert ("stacked_of_alone" in row) == (memory == "speed")
    assert "packed of alone" in capsys.readouterr().out


def test_one_more_task_on_a_loaded_vit_takes_less_than_twenty_megabytes_in_training_and_five_to_predict() -> None:
    backbone = load_backbone("vit_base_patch16_224", "random")
    model = build_classifier(backbone, HSN_PRESETS["HSN_B"], num_classes=100)
    own = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    assert own < 5e6
    assert own < packing.task_bytes(model) < 20e6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "0"], "'0': expected numbers from 1 on"),
        (["--batch-size", "1"], "--batch-size 1: expected at least 2"),
        (["--rounds", "0"], "--rounds 0: expected at least 1"),
        (["--device", "tpu"], "--device tpu: expected cpu or cuda"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        packing.main([*ARGUMENTS, *arguments, "--output", str(tmp_path / "out.json")])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
