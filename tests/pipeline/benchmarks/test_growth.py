"""The benchmark of growth measures every axis and draws a picture."""

import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.benchmarks import growth
from pipeline.reports.growth_picture import growth_picture


def test_each_axis_is_followed_as_far_as_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = {"images a batch": 4, "image side": 224, "tasks": 2, "registers": 2}
    arguments = ["--backbone", "vit_tiny_patch16_224", "--image-size", "32", "--rounds", "1"]
    arguments += [word for axis, most in limits.items() for word in ("--at-most", f"{axis}={most}")]
    picture = tmp_path / "growth.png"
    arguments += ["--output", str(tmp_path / "growth.json"), "--picture", str(picture)]
    assert growth.main(arguments) == 0
    rows = json.loads((tmp_path / "growth.json").read_text())["rows"]
    followed = {axis: [row["value"] for row in rows if row["axis"] == axis] for axis in growth.AXES}
    assert followed == {"images a batch": [2, 4], "image side": [224], "tasks": [1, 2], "registers": [0, 1, 2]}
    saved = {(row["axis"], row["value"]): row["saved_bytes_per_image"] for row in rows}
    assert saved["registers", 2] > saved["registers", 1]
    assert saved["tasks", 2] == pytest.approx(saved["tasks", 1], rel=0.05)
    assert "saved MiB an image" in capsys.readouterr().out
    with Image.open(picture) as image:
        assert image.width > 1000


def test_no_rows_and_no_such_axis_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="needs at least one row"):
        growth_picture([], tmp_path / "none.png", title="")
    with pytest.raises(SystemExit):
        growth.main(["--at-most", "depth=3", "--output", "a.json", "--picture", "a.png"])
    assert "axes: images a batch (from 2 on), image side (from 224 on)" in capsys.readouterr().err
