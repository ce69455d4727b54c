"""A Ray or an MLflow that cannot do its part is one error, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import fanout_vtab, search_task
from pipeline.tracking.mlflow_client import open_client


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The options of a job on one small task and a micro ViT."""
    for number in range(40):
        folder = tmp_path / "photos" / ("light" if number % 2 else "dark")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), number + 150 * (number % 2), np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "own.toml").write_text('[tasks.own-light]\ndata = "photos"\n')
    words = ["--task-file", str(tmp_path / "own.toml"), "--storage", str(tmp_path / "storage")]
    words += ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", "--set", "epochs=1", "--set", "image_size=32"]
    return [*words, "--backbone", "hst_vit_micro_patch8_64", "--backbone-weights", "random"]


def test_a_ray_that_does_not_answer(
    words: list[str], unused_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused_port}")
    assert fanout_vtab.main(words) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"error: RAY_ADDRESS=127.0.0.1:{unused_port}: no Ray answers there (")


def test_a_deleted_experiment(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = open_client(f"sqlite:///{tmp_path}/mlflow.db")
    client.delete_experiment(client.create_experiment("mine"))
    assert fanout_vtab.main([*words, "--experiment", "mine"]) == 2
    heading, told = capsys.readouterr().err.splitlines()
    assert heading == "nothing was started; 1 fault:"
    assert "experiment 'mine' is deleted" in told


def test_a_name_of_an_experiment_that_cannot_be(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "../mine")
    assert search_task.main(["own-light", *words]) == 2
    assert "experiment '../mine': expected" in capsys.readouterr().err
    assert not (tmp_path / "mlflow.db").exists()
