"""The comparison on the demo's tasks keeps finished results, never selects on test, and prints its rows as a table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hst.backbone import load_backbone
from pipeline.benchmarks import demo_transfer
from pipeline.benchmarks.demo_transfer import BACKBONE, REGULARISATIONS, main, measure, probe, table
from pipeline.tasks.catalogue import TASKS

DIGITS = TASKS["demo-digits"]


def rows(method: str, values: list[float], task: str = "demo-digits") -> list[dict[str, Any]]:
    return [{"task": task, "seed": i, "method": method, "test/top1": value} for i, value in enumerate(values)]


def test_the_table_has_means_and_standard_deviations() -> None:
    printed = table([*rows("HST, random", [0.5, 0.6, 0.7]), *rows("linear probe, random", [0.25])])
    assert printed.splitlines()[2] == "| demo-digits | 25.0 (1 of 3 seeds) | - | 60.0 ± 10.0 | - |"


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, int]] = []

    def stand_in(kind: str) -> Any:
        def run(backbone: Any, task: Any, data: Any, seed: int) -> float:
            assert set(data) == {"train", "val", "trainval", "test"}
            asked.append((kind, backbone.identity, seed))
            if len(asked) == 3:
                raise KeyboardInterrupt
            return 0.5

        return run

    monkeypatch.setattr(demo_transfer, "probe", stand_in("probe"))
    monkeypatch.setattr(demo_transfer, "tune", stand_in("tune"))
    output = tmp_path / "rows.json"
    with pytest.raises(KeyboardInterrupt):
        measure(output, [DIGITS], range(2), say=lambda line: None)
    assert len(json.loads(output.read_text())["rows"]) == 2
    report = measure(output, [DIGITS], range(2), say=lambda line: None)
    ours, random = load_backbone(BACKBONE).identity, load_backbone(BACKBONE, "random").identity
    expected = {(kind, vit, seed) for kind in ("probe", "tune") for vit in (ours, random) for seed in (0, 1)}
    assert set(asked) == expected
    assert len(asked) == len(expected) + 1  # the interrupted one ran twice
    assert json.loads(output.read_text()) == report


def test_a_file_of_another_backbone_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rows.json"
    output.write_text(json.dumps({"backbone": "another", "rows": []}))
    assert main(["--output", str(output), "--tasks", "digits"]) == 1
    assert "of another set-up (backbone, identities" in capsys.readouterr().err


def test_a_file_of_another_recipe_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_transfer, "probe", lambda *arguments: 0.5)
    monkeypatch.setattr(demo_transfer, "tune", lambda *arguments: 0.5)
    output = tmp_path / "rows.json"
    written = measure(output, [DIGITS], range(1), say=lambda line: None)
    assert measure(output, [DIGITS], range(1), say=lambda line: None) == written
    longer = dataclasses.replace(DIGITS, recipe=dataclasses.replace(DIGITS.recipe, epochs=99))
    monkeypatch.setitem(TASKS, DIGITS.name, longer)
    with pytest.raises(ValueError, match=r"of another set-up \(recipes\)"):
        measure(output, [longer], range(1), say=lambda line: None)


def test_a_task_that_is_no_demo_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "rows.json"), "--tasks", "digits,dtd"]) == 2
    assert "vtab-dtd is none of the demo's tasks" in capsys.readouterr().err


def test_the_probe_chooses_on_val_and_looks_at_test_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(0)
    features = {
        split: (draws.normal(size=(size, 4)), np.arange(size) % 2)
        for split, size in {"train": 40, "val": 20, "trainval": 60, "test": 30}.items()
    }
    seen: list[tuple[int, int, float]] = []
    scores = dict(zip(REGULARISATIONS, (0.1, 0.3, 0.9, 0.9, 0.2, 0.1), strict=True))

    def top1(train: Any, test: Any, regularisation: float) -> float:
        seen.append((len(train[1]), len(test[1]), regularisation))
        return scores[regularisation] if len(test[1]) == 20 else 0.77

    monkeypatch.setattr(demo_transfer, "_features", lambda backbone, task, split: features[split])
    monkeypatch.setattr(demo_transfer, "_probe_top1", top1)
    assert probe(load_backbone(BACKBONE, "random"), DIGITS, {split: split for split in features}, 0) == 0.77  # type: ignore[misc]
    assert seen == [*((40, 20, strength) for strength in REGULARISATIONS), (60, 30, REGULARISATIONS[2])]


def test_the_probe_learns_what_is_linear() -> None:
    draws = np.random.default_rng(0)
    images = draws.normal(size=(200, 6))
    labels = (images[:, 0] + images[:, 1] > 0).astype(int)
    split = ((images[:120], labels[:120]), (images[120:], labels[120:]))
    assert demo_transfer._probe_top1(*split, 10.0) > 0.9
