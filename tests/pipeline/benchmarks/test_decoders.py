"""The benchmark of decoders counts the pixels that differ; no test asserts a rate."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hst.preprocessing import Preprocessing
from pipeline.benchmarks import decoders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draws = np.random.default_rng(0)
    for number in range(3):
        coarse = Image.fromarray(draws.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        (tmp_path / "images").mkdir(exist_ok=True)
        coarse.resize((57, 43)).save(tmp_path / f"images/{number}.jpg")
    coarse.convert("L").save(tmp_path / "images/grey.jpg")
    (tmp_path / "images/notes.txt").write_text("no image")
    return tmp_path / "images"


def test_every_decoder_that_is_there_is_compared_with_pillow(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results/decoders.json"
    arguments = ["--images", str(folder), "--image-size", "24", "--rounds", "1", "--output", str(output)]
    assert decoders.main(arguments) == 0
    report = json.loads(output.read_text())
    assert report["images"] == 3
    rows = {row["subject"]: row for row in report["rows"]}
    assert rows["pillow"]["of_pillow"] == 1
    assert rows["pillow"]["differing_images"] == 0
    assert rows["pillow, then torchvision's resize"]["largest_difference"] <= 8
    assert "| pillow |" in capsys.readouterr().out


def test_pixels_that_differ_are_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_two(data: bytes, recipe: Preprocessing) -> np.ndarray:
        found = decoders.pillow(data, recipe)
        found[0, 0, 0] ^= 2
        return found

    subjects = {"pillow": (decoders.pillow, "PIL"), "other": (off_by_two, "PIL"), "absent": (off_by_two, "no_such")}
    monkeypatch.setattr(decoders, "SUBJECTS", subjects)
    rows = decoders.measure(decoders.read_images(folder, 2), Preprocessing(image_size=8), rounds=1)
    assert [row["subject"] for row in rows] == ["pillow", "other"]
    other = rows[1]
    assert (other["differing_images"], other["largest_difference"]) == (2, 2)
    assert other["differing_values"] == round(1 / 192, 6)


def test_a_folder_without_images_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert decoders.main(["--images", str(tmp_path), "--output", str(tmp_path / "x.json")]) == 1
    assert "no RGB JPEG in it" in capsys.readouterr().err
