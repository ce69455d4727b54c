"""The pretraining: a stopped run that goes on equals one that was never stopped, and its file is a backbone."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hst.backbone import load_backbone
from hst.vit.weights import shipped_weights
from pipeline.pretraining.plan import Pretraining
from pipeline.pretraining.train import pretrain

PLAN = Pretraining(steps=3, batch_size=4, warmup_steps=1, held_out_batches=1)


def run(folder: Path, plan: Pretraining = PLAN, **options: float) -> tuple[bool, list[str]]:
    """Pretrain; return whether it is done, and the lines that were said."""
    said: list[str] = []
    done = pretrain(
        plan,
        folder / "vit.safetensors",
        state=folder / "state.tmp",
        device=torch.device("cpu"),
        say=said.append,
        **options,
    )
    return done, said


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_what_is_stopped_and_goes_on_is_what_was_never_stopped(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole)[0]
    assert run(parts, minutes=0)[0] is False  # one step a call
    assert not (parts / "vit.safetensors").exists()
    assert run(parts, minutes=0)[0] is False
    done, said = run(parts, minutes=0)
    assert done
    assert "2 of 3 steps are done" in said[0]
    files = (whole / "vit.safetensors", parts / "vit.safetensors")
    assert header(files[0]) == header(files[1])
    expected, found = (load_file(file) for file in files)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [path.name for path in parts.iterdir()] == ["vit.safetensors"]


def test_the_file_is_a_backbone_and_says_how_it_was_made(tmp_path: Path) -> None:
    _, said = run(tmp_path)
    assert "images/s  0m00s left" in said[0]
    backbone = load_backbone(PLAN.backbone, tmp_path / "vit.safetensors")
    assert backbone.identity != load_backbone(PLAN.backbone, "random").identity
    made = header(tmp_path / "vit.safetensors")
    assert json.loads(made["plan"]) == dataclasses.asdict(PLAN)
    assert made["images"] == "12"
    assert json.loads(made["held_out"]).keys() == {"formula_top1", "turn_degrees", "shown_accuracy", "centre_pixels"}
    assert len(made["sources_sha256"]) == 64


def test_the_shipped_file_is_the_one_of_the_defaults() -> None:
    plan = Pretraining()
    made = header(shipped_weights(plan.backbone))
    assert json.loads(made["plan"]) == dataclasses.asdict(plan)
    assert made["images"] == str(plan.steps * plan.batch_size)
    assert json.loads(made["held_out"])["shown_accuracy"] > 0.9


def test_a_plan_is_made_longer_on_its_way_and_changed_in_nothing_else(tmp_path: Path) -> None:
    run(tmp_path, minutes=0)
    with pytest.raises(ValueError, match=r"state\.tmp: this state is of another plan, .* after 1 steps"):
        run(tmp_path, dataclasses.replace(PLAN, seed=1))
    done, said = run(tmp_path, dataclasses.replace(PLAN, steps=4))
    assert done
    assert "1 of 4 steps are done" in said[0]


def test_a_state_of_other_sources_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, minutes=0)
    monkeypatch.setattr("pipeline.pretraining.train.source_sha256", lambda places: "0" * 64)
    with pytest.raises(ValueError, match=r"state\.tmp: this state is of other sources"):
        run(tmp_path)


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_a_state_that_would_execute_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"plan": Runs()}, tmp_path / "state.tmp")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        run(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_loss_without_bounds_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="try a smaller learning_rate"):
        run(tmp_path, dataclasses.replace(PLAN, learning_rate=1e30))


def test_the_learning_rate_rises_is_level_and_falls(tmp_path: Path) -> None:
    plan = Pretraining(steps=100, warmup_steps=9, fall=0.2, learning_rate=1.0)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert set(rates[10:81]) == {1.0}
    assert rates[80:] == pytest.approx([0.05 * left for left in range(20, 0, -1)])
    longer = dataclasses.replace(plan, steps=200)
    assert [longer.rate(step) for step in range(80)] == rates[:80]


def test_all_that_is_impossible_in_a_plan_is_told_at_once() -> None:
    with pytest.raises(ValueError) as error:
        Pretraining(steps=0, batch_size=1, learning_rate=0.0, fall=1.5)
    assert all(f"{field}=" in str(error.value) for field in ("steps", "batch_size", "learning_rate", "fall"))
