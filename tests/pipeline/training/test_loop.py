"""The loop: a resumed run equals an uninterrupted one, evaluations follow the protocol, runs without a step fail."""

import copy
import dataclasses
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hst.backbone import Backbone, backbone_identity, load_backbone
from hst.checkpoint_header import file_sha256
from hst.config import HSN_B, HSNConfig
from hst.model import hst_spec
from hst.preprocessing import Preprocessing
from pipeline.data.prepare import prepare_task
from pipeline.tasks.catalogue import Task
from pipeline.training import checkpoints, epochs, task_run
from pipeline.training.loop import fit
from pipeline.training.task_run import RunState, TrainingError, resolve_precision
from pipeline.training.unit import RunSpec, build_run
from pipeline.training.workers import Workers
from pipeline.workflow.job import without_places

Spec = Callable[..., RunSpec]


class Stop(Exception):
    """Stands in for a kill."""


def train(
    spec: RunSpec,
    backbone: Backbone,
    *,
    folder: Path | None = None,
    stop_after: int = 0,
    stop_after_step: int = 0,
    resume: list[dict[str, Any]] | None = None,
) -> RunState:
    def report(states: list[RunState], finished: bool) -> None:
        if folder is not None:
            checkpoints.save(folder, states)
        if stop_after and (states[0].epochs_done, states[0].steps_done) == (stop_after, stop_after_step):
            raise Stop

    if spec.recipe["precision"] == "float64":
        backbone.double()
    runs = [build_run(spec, backbone, Workers())]
    steps = runs[0].steps_per_epoch

    def pause(step: int) -> bool:
        return step == stop_after_step + 2 * (stop_after_step == steps)  # a batch of statistics, evaluated ones

    (state,) = fit(runs, workers=Workers(), report=report, pause=pause, resume=resume)
    return state


def assert_same_tensors(one: RunState, other: RunState) -> None:
    ours, theirs = one.run.model.state_dict(), other.run.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


AUGMENTED: dict[str, Any] = {
    "mixup": 0.8,
    "cutmix": 1.0,
    "random_erasing": 0.5,
    "horizontal_flip": 0.5,
    "random_resized_crop": True,
    "rand_augment": "rand-m9-mstd0.5-inc1",
}


@pytest.mark.parametrize("recipe", [{}, {"accumulation_steps": 2}, AUGMENTED])
@pytest.mark.parametrize(("epochs", "steps"), [(1, 0), (2, 0), (1, 1), (2, 3), (2, 5)])
def test_a_run_resumed_from_disk_equals_one_that_was_never_stopped(
    tiny_spec: Spec, tiny_backbone: Backbone, tmp_path: Path, epochs: int, steps: int, recipe: dict[str, Any]
) -> None:
    """It stops at an epoch's end, in the middle of one (5 steps of 4 images), or in the evaluation after its steps."""
    spec = tiny_spec(batch_size=4, **recipe)
    whole = train(spec, tiny_backbone)
    with pytest.raises(Stop):
        train(spec, tiny_backbone, folder=tmp_path, stop_after=epochs, stop_after_step=steps)
    checkpoint = checkpoints.find(str(tmp_path))
    assert checkpoint is not None
    assert checkpoint.progress == (epochs, 4 * steps)
    (saved,) = checkpoint.states()
    assert saved["cursor"] == {"epoch": epochs, "position": 4 * steps}
    resumed = train(spec, tiny_backbone, resume=[saved])
    assert_same_tensors(resumed, whole)
    losses = [[row["train/loss"] for row in state.history] for state in (resumed, whole)]
    assert losses[0] == losses[1]
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3]


def test_seconds_are_counted_of_the_devices_that_each_start_had(tiny_spec: Spec, tiny_backbone: Backbone) -> None:
    spec = tiny_spec(batch_size=4, epochs=2)
    saved: list[dict[str, Any]] = []

    def report(states: list[RunState], finished: bool) -> None:
        saved.append(copy.deepcopy(states[0].state_dict()))
        raise Stop

    backbone, half = tiny_backbone.double(), Workers(device_share=0.5)
    with pytest.raises(Stop):
        fit([build_run(spec, backbone, half)], workers=half, report=report, pause=lambda step: step == 3)
    assert saved[0]["device_seconds"] == saved[0]["epoch_seconds"] / 2 > 0
    nothing = Workers(device_share=0.0)
    (state,) = fit([build_run(spec, backbone, nothing)], workers=nothing, report=lambda *_: None, resume=saved)
    assert state.results["device_seconds"] == saved[0]["device_seconds"]


def test_a_pause_is_offered_after_every_step_and_within_evaluations(tiny_spec: Spec, tiny_backbone: Backbone) -> None:
    """An epoch has 5 steps, one batch estimates the statistics, and val's 9 images make 2 whole batches."""
    asked: list[int] = []
    cursors: list[tuple[int, int]] = []

    def pause(step: int) -> bool:
        asked.append(step)
        return step == 4

    def report(states: list[RunState], finished: bool) -> None:
        cursors.append((states[0].epochs_done, states[0].steps_done))

    run = build_run(tiny_spec(batch_size=4, epochs=2), tiny_backbone.double(), Workers())
    fit([run], workers=Workers(), report=report, pause=pause)
    assert asked == [1, 2, 3, 4, 5, 6, 7, 8] * 2
    assert cursors == [(0, 4), (1, 0), (1, 4), (2, 0)]


def test_the_steps_before_an_evaluation_that_was_stopped_are_counted_once(
    tiny_spec: Spec, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, backbone = tiny_spec(batch_size=4, epochs=1), tiny_backbone.double()
    saved: list[dict[str, Any]] = []

    def report(states: list[RunState], finished: bool) -> None:
        saved.append(copy.deepcopy(states[0].state_dict()))
        raise Stop

    with pytest.raises(Stop):
        fit([build_run(spec, backbone, Workers())], workers=Workers(), report=report, pause=lambda step: step == 7)
    assert saved[0]["cursor"] == {"epoch": 0, "position": 20}
    trained = saved[0]["epoch_seconds"]
    assert saved[0]["device_seconds"] > trained > 0, "the evaluation took its time, too"
    run = build_run(spec, backbone, Workers())
    run.model.register_forward_pre_hook(lambda *_: pytest.fail("a step was made again"))
    for module in (epochs, task_run):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    (state,) = fit([run], workers=Workers(), report=lambda *_: None, resume=saved)
    assert state.history[0]["images_per_second"] == pytest.approx(20 / trained)


def bright_and_dark(root: Path) -> Path:
    """24 + 24 grey images of each split, whose brightness alone tells the two classes apart."""
    folder, draws = root / "tiny", np.random.default_rng(0)
    folder.mkdir()
    for split in ("train800", "val200", "test"):
        lines = []
        for i, grey in enumerate(np.concatenate([draws.normal(35, 8, 24), draws.normal(164, 8, 24)])):
            Image.new("L", (32, 32), round(grey.clip(0, 255))).save(folder / f"{split}-{i}.png")
            lines.append(f"{split}-{i}.png {i // 24}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    return root


@pytest.mark.parametrize(
    ("hsn", "image_size", "epochs"),
    [(HSNConfig(widths=(8, 8, 16, 16), num_heads=(2, 2, 2, 2)), 32, 2), (HSN_B, 64, 2), (HSN_B, 64, 8)],
)
def test_what_is_learned_in_few_steps_is_seen_on_val(
    tmp_path: Path, tiny_spec: Spec, hsn: HSNConfig, image_size: int, epochs: int
) -> None:
    """Running statistics lag behind the weights: with them val is at chance, though the training loss is near 0."""
    task = Task(name="demo-tiny", short_name="tiny", folder="tiny", group="demo", num_classes=2)
    manifests = prepare_task(task, str(bright_and_dark(tmp_path)), str(tmp_path / "shards"))
    backbone = load_backbone("hst_vit_micro_patch8_64")
    recipe = {"image_size": image_size, "epochs": epochs, "batch_size": 16, "drop_path": 0.0, "label_smoothing": 0.0}
    spec = dataclasses.replace(
        tiny_spec(**recipe, precision="float32"),
        method=hst_spec(hsn),
        backbone_identity=backbone.identity,
        head={"kind": "classification", "input": "side", "num_classes": 2},
        train=manifests["train"].uri,
        evaluate=manifests["val"].uri,
        data_sha256={split: manifests[split].sha256 for split in ("train", "val")},
    )
    running = dataclasses.replace(spec, recipe={**spec.recipe, "batch_statistics": "running"})
    estimated, lagging = train(spec, backbone), train(running, backbone)
    assert estimated.results["metrics"]["val/top1"] == 1
    assert lagging.results["metrics"]["val/top1"] < 0.75
    assert lagging.history[-1]["train/loss"] == estimated.history[-1]["train/loss"], "the training is the same"


def test_the_statistics_of_a_finished_run_are_those_of_its_training_images(
    tiny_spec: Spec, tiny_backbone: Backbone
) -> None:
    state = train(tiny_spec(epochs=2), tiny_backbone)
    model, kept = state.run.model, copy.deepcopy(state.run.model.state_dict())
    (batch,) = state.run.train.train_batches(epoch=0, batch_size=23, seed_key=(0, "any order"))
    for buffer in model.buffers():
        buffer.fill_(7)
    model.estimate_statistics(state.run.preprocessing.normalize(batch.images, torch.float64), 1)
    for name, buffer in model.named_buffers():
        assert name.endswith("num_batches_tracked") or torch.allclose(buffer, kept[name], rtol=1e-10), name


def test_what_a_step_keeps_changes_nothing_but_rounding(tiny_spec: Spec, tiny_backbone: Backbone) -> None:
    spec = tiny_spec()
    states = {
        mode: train(dataclasses.replace(spec, memory=mode), tiny_backbone) for mode in ("speed", "balanced", "memory")
    }
    losses = {mode: [row["train/loss"] for row in state.history] for mode, state in states.items()}
    assert losses["balanced"] == pytest.approx(losses["speed"], rel=1e-9)
    assert losses["memory"] == pytest.approx(losses["speed"], rel=1e-9)
    assert [state.results["memory"] for state in states.values()] == list(states)
    assert without_places(states_spec := dataclasses.replace(spec, memory="memory")) == without_places(spec)
    assert states_spec != spec


def test_as_many_states_are_taken_up_as_there_are_runs(tiny_spec: Spec, tiny_backbone: Backbone) -> None:
    saved = train(tiny_spec(epochs=1), tiny_backbone).state_dict()
    runs = [build_run(tiny_spec(), tiny_backbone, Workers()) for _ in range(2)]
    with pytest.raises(ValueError, match="shorter"):
        fit(runs, workers=Workers(), report=lambda *_: None, resume=[saved])


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_a_state_that_would_execute_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save([{"model": Runs()}], tmp_path / "state.pt")
    sha256 = file_sha256(tmp_path / "state.pt")
    hostile = checkpoints.Checkpoint(uri=str(tmp_path), progress=(1, 0), finished=False, files={"state.pt": sha256})
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        hostile.states()
    assert not (tmp_path / "executed").exists()


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tiny_spec: Spec, tiny_backbone: Backbone) -> None:
    torch.manual_seed(1)
    one = train(tiny_spec(), tiny_backbone)
    torch.manual_seed(2)  # the global generator must not matter
    assert_same_tensors(one, train(tiny_spec(), tiny_backbone))
    other = train(tiny_spec(seed=1), tiny_backbone)
    assert not torch.equal(one.run.model.head.linear.weight, other.run.model.head.linear.weight)


def test_training_lowers_the_loss_and_leaves_the_frozen_vit_alone(tiny_spec: Spec, tiny_backbone: Backbone) -> None:
    before = {name: value.clone() for name, value in tiny_backbone.vit.state_dict().items()}
    state = train(tiny_spec(epochs=20, drop_path=0.0, label_smoothing=0.0), tiny_backbone)
    first, last = (float(state.history[i]["train/loss"]) for i in (0, -1))
    assert last < 0.6 * first
    assert backbone_identity(tiny_backbone.vit.state_dict()) == tiny_backbone.identity
    for name, value in tiny_backbone.vit.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("field", AUGMENTED)
def test_each_augmentation_reaches_what_is_trained_on(tiny_spec: Spec, tiny_backbone: Backbone, field: str) -> None:
    plain, augmented = tiny_spec(epochs=1), tiny_spec(epochs=1, **{field: AUGMENTED[field]})
    losses = [train(spec, tiny_backbone).history[0]["train/loss"] for spec in (plain, augmented)]
    assert losses[0] != losses[1]


def test_a_selection_run_looks_at_val_alone_and_a_final_run_at_test_once(
    tiny_spec: Spec, tiny_backbone: Backbone
) -> None:
    selection = train(tiny_spec("selection"), tiny_backbone)
    final = train(tiny_spec("final"), tiny_backbone)
    assert set(selection.results["metrics"]) == {"val/top1"}
    assert set(final.results["metrics"]) == {"test/top1"}
    assert ["test/top1" in row for row in final.history] == [False, False, True]
    assert not any(name.startswith("val/") for row in final.history for name in row)
    assert final.run.train.num_samples == 23 + 9
    assert sum(map(sum, final.results["confusion/test"])) == 13
    assert selection.results["metrics"]["val/top1"] == selection.history[-1]["val/top1"]


def test_gradient_accumulation_makes_as_many_optimizer_steps(tiny_spec: Spec, tiny_backbone: Backbone) -> None:
    plain = train(tiny_spec(epochs=1), tiny_backbone)
    parts = train(tiny_spec(epochs=1, accumulation_steps=2), tiny_backbone)
    steps = [next(iter(s.optimizer.state.values()))["step"].item() for s in (plain, parts)]
    assert steps == [2, 2]  # 23 images in batches of 8; the rest is dropped
    # batch norm sees parts of 4 images, so the losses are only close
    assert parts.history[0]["train/loss"] == pytest.approx(plain.history[0]["train/loss"], rel=0.2)


@pytest.mark.parametrize(
    ("recipe", "workers", "message"),
    [
        ({"accumulation_steps": 3}, 1, "accumulation_steps=3 does not divide the batch of 8"),
        ({"accumulation_steps": 8}, 1, "leaves one without an image, or with one to normalise by"),
        ({}, 9, "over 9 workers leaves one without an image"),
    ],
)
def test_a_run_that_cannot_make_a_step_is_refused(
    tiny_spec: Spec, tiny_backbone: Backbone, recipe: dict[str, object], workers: int, message: str
) -> None:
    run = build_run(tiny_spec(**recipe), tiny_backbone, Workers())
    with pytest.raises(TrainingError, match=message):
        fit([run], workers=Workers(size=workers), report=lambda *_: None)


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(tiny_spec: Spec, tiny_backbone: Backbone) -> None:
    with pytest.raises(TrainingError, match=r"demo-tiny: the training loss of epoch \d+ is .*smaller learning_rate"):
        train(tiny_spec(learning_rate=1e30, epochs=4, precision="float32"), tiny_backbone)


def test_a_loss_that_is_not_finite_is_not_saved_in_the_middle_of_an_epoch(
    tiny_spec: Spec, tiny_backbone: Backbone
) -> None:
    saved: list[float] = []
    run = build_run(tiny_spec(learning_rate=1e30, batch_size=4, precision="float32"), tiny_backbone, Workers())
    with pytest.raises(TrainingError, match="the training loss of epoch 1 is"):
        fit(
            [run],
            workers=Workers(),
            report=lambda states, _: saved.append(states[0].loss_sums["loss"]),
            pause=lambda _: True,
        )
    assert saved
    assert all(map(math.isfinite, saved))


def test_an_evaluation_that_missed_an_image_is_an_error(
    tiny_spec: Spec, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build_run(tiny_spec(epochs=1), tiny_backbone.double(), Workers())
    assert run.validation is not None
    batches = list(run.validation.eval_batches(batch_size=8))
    monkeypatch.setattr(run.validation, "eval_batches", lambda **_: iter(batches[:-1]))
    with pytest.raises(TrainingError, match="val was evaluated on 8 images, not on the 9 of its manifest"):
        fit([run], workers=Workers(), report=lambda *_: None)


def test_a_spec_refuses_another_backbone(tiny_spec: Spec, tiny_backbone: Backbone) -> None:
    spec = tiny_spec()
    tiny_backbone.identity = "0" * 64
    with pytest.raises(ValueError, match=f"backbone 000000000000 was given, {spec.backbone_identity[:12]} is expected"):
        build_run(spec, tiny_backbone, Workers())


def test_a_spec_refuses_data_that_changed_since_it_was_made(tiny_spec: Spec, tiny_backbone: Backbone) -> None:
    spec = tiny_spec()
    changed = dataclasses.replace(spec, data_sha256={**spec.data_sha256, "train": "0" * 64})
    with pytest.raises(ValueError, match=r"expected 000000000000: the data was changed after this run began"):
        build_run(changed, tiny_backbone, Workers())


def test_the_pixels_of_a_run_are_its_recipes(tiny_spec: Spec, tiny_backbone: Backbone) -> None:
    run = build_run(tiny_spec(eval_crop=0.875, mean=(0.1, 0.2, 0.3)), tiny_backbone, Workers())
    expected = Preprocessing(image_size=32, mean=(0.1, 0.2, 0.3), crop_fraction=0.875)
    assert run.preprocessing == expected
    assert run.validation is not None
    assert run.validation.preprocessing == expected


def test_an_unfinished_unit_has_no_results(tiny_spec: Spec, tiny_backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(tiny_spec(), tiny_backbone, folder=tmp_path, stop_after=1)
    checkpoint = checkpoints.find(str(tmp_path))
    assert checkpoint is not None
    assert not checkpoint.finished
    state = train(tiny_spec(), tiny_backbone, folder=tmp_path)
    checkpoint = checkpoints.find(str(tmp_path))
    assert checkpoint is not None
    assert checkpoint.finished
    (result,) = checkpoint.results()
    assert result.results["metrics"] == state.results["metrics"]
    assert result.tensors.keys() == state.run.model.state_dict().keys()


def test_precision_auto_is_float32_on_cpu_and_bfloat16_on_cuda() -> None:
    assert resolve_precision("auto", torch.device("cpu")) == "float32"
    assert resolve_precision("auto", torch.device("cuda")) == "bfloat16"
    assert resolve_precision("float64", torch.device("cuda")) == "float64"
