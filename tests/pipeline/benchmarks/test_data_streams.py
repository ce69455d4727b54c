"""The benchmark of data streams measures every subject and records the machine; no test asserts a rate."""

import json
from pathlib import Path

import pytest

from pipeline.benchmarks.data_streams import main
from pipeline.data.demo import make_demo_data


def test_every_subject_has_a_rate_beside_bare_decoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_demo_data(tmp_path / "data")
    output = tmp_path / "results/streams.json"
    arguments = [
        "--data",
        str(tmp_path / "data"),
        "--tasks",
        "demo-shape_x",
        "--image-size",
        "32",
        "--rounds",
        "1",
        "--copies",
        "2",
    ]
    assert main([*arguments, "--cores", "1", "1000", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert "cores of" in report["hardware"]
    assert {"python", "torch", "pillow"} <= report["versions"].keys()
    rows = {row["subject"]: row for row in report["rows"]}
    assert rows.keys() == {"decode", "write", "disk, first epoch", "later epochs, in memory"}
    assert rows["decode"]["of_bare_decoding"] == 1
    assert all(row["images_per_second"] > 0 and row["images"] == 400 for row in rows.values())
    assert {name for name, row in rows.items() if row["peak_memory_bytes"] is not None} == {"disk, first epoch"}
    printed = capsys.readouterr().out
    assert "this machine does not have 1000 cores" in printed
    assert "| demo-shape_x | 1 | decode |" in printed


def test_data_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(tmp_path), "--output", str(tmp_path / "x.json")]
    assert main(arguments) == 1
    assert "no data found" in capsys.readouterr().err
    assert main([*arguments, "--tasks", "nothing"]) == 2
    assert not (tmp_path / "x.json").exists()
