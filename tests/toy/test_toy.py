"""The seams hold: a regression of one number, by a method of its own, needs no change but its registrations."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hst.backbone import Backbone, load_backbone
from hst.checkpoint import load_task_model, save_checkpoint
from hst.config import HSN_S
from hst.model import build_classifier, hst_spec
from hst.multitask import packs
from hst.preprocessing import Preprocessing
from hst.task_pool import TaskPool
from pipeline.console.command_line import FaultyOptions
from pipeline.data.errors import DataError
from pipeline.data.prepare import prepare_task
from pipeline.data.shards.manifest import Manifest, load_manifest
from pipeline.data.sources import open_source
from pipeline.data.verify import verify_split
from pipeline.fanout.options import FanoutOptions, check
from pipeline.tasks.catalogue import Task
from pipeline.training.calibrate import measure
from pipeline.training.loop import fit
from pipeline.training.pack import Pack
from pipeline.training.task_run import NotFiniteError, RunState
from pipeline.training.unit import RunSpec, build_run, parts_of
from pipeline.training.workers import Workers
from pipeline.workflow.steps import fingerprint
from tests.toy.conftest import MAE
from tests.toy.regression_data import write_bars

BACKBONE = "hst_vit_micro_patch8_64"
TOY, HST = {"name": "last_patches"}, hst_spec(HSN_S)
Spec = Callable[..., RunSpec]

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(BACKBONE)


def trained(specs: list[RunSpec], backbone: Backbone, resume: Any = None) -> list[RunState]:
    runs = [build_run(spec, backbone, Workers()) for spec in specs]
    return fit(runs, workers=Workers(), report=lambda states, finished: None, resume=resume)


# Data.


def test_a_table_of_numbers_becomes_shards_that_name_their_annotation(manifests: dict[str, Manifest]) -> None:
    train = load_manifest(manifests["train"].uri)
    assert (train.annotation, train.format_version, train.class_names) == ("number", 4, ())
    assert {split: manifest.num_samples for split, manifest in manifests.items()} == {
        "train": 18,
        "val": 2,
        "trainval": 20,
        "test": 10,
    }
    assert not any(report.faults for report in verify_split(train))


def test_the_image_is_found_wherever_its_name_sorts(manifests: dict[str, Manifest]) -> None:
    """``number`` sorts before ``png``, and after ``jpg``: the index says where the image is, whatever comes behind."""
    line = json.loads((Path(manifests["test"].uri).parent / "index.jsonl").read_text().splitlines()[0])
    assert isinstance(line["label"], float)
    tar = Path(manifests["test"].uri).parent / line["shard"]
    image = tar.read_bytes()[line["image_offset"] : line["image_offset"] + line["image_length"]]
    assert image.startswith(b"\x89PNG")


def test_a_label_that_is_no_number_is_named_with_its_line(task: Task, tmp_path: Path) -> None:
    table = write_bars(tmp_path / "toy-bar") / "samples.csv"
    table.write_text(table.read_text().replace("images/0.png,", "images/0.png,far "))
    with pytest.raises(DataError) as error:
        open_source(str(tmp_path), task)
    assert any("samples.csv:2: " in fault and "far" in fault for fault in error.value.faults)


def test_photos_sorted_by_class_are_no_data_of_a_regression(task: Task, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "toy-bar/train" / name).mkdir(parents=True)
    with pytest.raises(DataError, match="no data found") as error:
        open_source(str(tmp_path), task)
    assert "samples.csv" in str(error.value.faults)
    assert "a folder per class" not in str(error.value.faults)


def test_shards_of_another_annotation_are_refused(task: Task, manifests: dict[str, Manifest]) -> None:
    classes = dataclasses.replace(task, kind="classification")
    with pytest.raises(DataError) as error:
        open_source(str(Path(manifests["train"].uri).parents[2]), classes)
    assert any("labelled with a number" in fault for fault in error.value.faults)


# Training.


@pytest.mark.parametrize(("method", "part"), [(TOY, 0.9), (HST, 0.9)], ids=["toy method", "hst"])
def test_it_trains_and_its_error_falls(method: dict[str, Any], part: float, spec: Spec, backbone: Backbone) -> None:
    (state,) = trained([spec(method, epochs=12)], backbone)
    first, last = (state.history[i] for i in (0, -1))
    assert set(last) >= {"train/loss", "train/squared", "train/bias", "val/mae"}
    assert last["train/loss"] == pytest.approx(float(last["train/squared"]) + float(last["train/bias"]))
    assert float(last["train/loss"]) < part * float(first["train/loss"])
    assert state.results["metrics"] == {"val/mae": last["val/mae"]}
    assert "error_sum/val" in state.results


def test_stopped_in_mid_epoch_and_resumed_it_is_the_uninterrupted_run(spec: Spec, backbone: Backbone) -> None:
    (expected,) = trained([spec(TOY, "final")], backbone)
    saved: list[dict[str, Any]] = []

    class Stop(Exception):
        pass

    def report(states: list[RunState], finished: bool) -> None:
        if states[0].epochs_done == 1 and states[0].steps_done == 2:
            saved.append(states[0].state_dict())
            raise Stop

    run = build_run(spec(TOY, "final"), backbone, Workers())
    with pytest.raises(Stop):
        fit([run], workers=Workers(), report=report, pause=lambda step: True)
    assert saved[0]["loss_sums"].keys() == {"loss", "squared", "bias"}
    (state,) = trained([spec(TOY, "final")], backbone, resume=saved)
    for name, value in expected.run.model.state_dict().items():
        assert torch.equal(state.run.model.state_dict()[name], value), name
    losses = [[row["train/squared"] for row in one.history] for one in (state, expected)]
    assert losses[0] == losses[1]


def test_its_head_is_packed_with_a_classifier_and_its_method_never(spec: Spec, backbone: Backbone) -> None:
    classifier = build_classifier(backbone, HSN_S, num_classes=3)
    by_hst = build_run(spec(HST), backbone, Workers()).model
    by_toy = [build_run(spec(TOY), backbone, Workers()).model for _ in range(2)]
    assert packs([classifier, by_hst, *by_toy], [(64, 64)] * 4) == [[0, 1], [2], [3]]


def test_packed_it_is_the_run_alone(spec: Spec, backbone: Backbone) -> None:
    (alone,) = trained([spec(HST, precision="float64", epochs=1)], load_backbone(BACKBONE).double())
    pack, shared = Pack(Workers()), load_backbone(BACKBONE).double()
    for name in ("selection", "final"):
        pack.join(name, [build_run(spec(HST, name, precision="float64", epochs=1), shared, Workers())])
    while not all(state.finished for states in pack.units().values() for state in states):
        assert pack.step() == {}
    (packed,) = pack.units()["selection"]
    assert packed.history[-1]["val/mae"] == pytest.approx(alone.history[-1]["val/mae"], rel=1e-8)


@pytest.fixture
def options(bars: Path, tmp_path: Path) -> FanoutOptions:
    """A fan-out of the task by the toy method."""
    file = tmp_path / "toy.toml"
    file.write_text('[tasks.toy-bar]\nkind = "regression"\n[tasks.toy-bar.recipe]\nimage_size = 64\n')
    return FanoutOptions(
        task_files=(str(file),),
        data=str(bars),
        backbone=BACKBONE,
        storage=str(tmp_path / "storage"),
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        settings=("method=last_patches",),
    )


def test_a_pack_of_a_method_that_cannot_share_is_refused_before_anything_starts(options: FanoutOptions) -> None:
    (job,) = check(options)[1]
    assert (job.task.kind, job.method, job.head(())) == ("regression", TOY, {"kind": "number"})
    with pytest.raises(FaultyOptions, match="--pack: toy-bar: method last_patches cannot share a pass"):
        check(dataclasses.replace(options, pack=2))


def test_settings_of_a_side_network_that_the_method_does_not_have_are_refused(options: FanoutOptions) -> None:
    with pytest.raises(FaultyOptions, match="--set num_registers: of HST's side network, and toy-bar is tuned by"):
        check(dataclasses.replace(options, settings=("method=last_patches", "num_registers=2")))


def test_an_evaluation_that_gives_no_number_ends_the_run(
    spec: Spec, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.toy.mean_error.MeanError.compute", lambda self: {"mae": float("nan")})
    with pytest.raises(NotFiniteError, match="after epoch 1 val/mae is nan"):
        trained([spec(TOY)], backbone)


def test_a_calibration_measures_its_steps(backbone: Backbone) -> None:
    model = {"kind": "regression", "method": TOY, "recipe": {"image_size": 64}, "batch_size": 2}
    frozen = {"name": backbone.name, "identity": backbone.identity}
    (rate,) = measure(backbone.arrays(), frozen, [model], threads=1, seconds=0.1)
    assert rate["train_seconds"] > 0


# What depends on it, and what does not.


def test_a_finished_training_depends_on_its_own_method_head_and_kind() -> None:
    toy, ours = (
        parts_of("regression", "last_patches", "number", "number"),
        parts_of("classification", "hst", "classification", "class"),
    )
    assert toy == ("tests.toy.regression", "tests.toy.last_patches", "tests.toy.number_head", "tests.toy.number")
    assert fingerprint("train", {}, toy) != fingerprint("train", {}, ours)


def test_a_new_method_leaves_the_trainings_of_others_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    from hst.methods import METHODS

    parts = parts_of("classification", "hst", "classification", "class")
    before = fingerprint("train", {}, parts)
    monkeypatch.setitem(METHODS, "another", "tests.toy.last_patches:LastPatches")
    assert fingerprint("train", {}, parts) == before


# Prediction.


def test_a_light_checkpoint_carries_kind_measure_method_and_head_and_predicts(
    spec: Spec, backbone: Backbone, tmp_path: Path
) -> None:
    (state,) = trained([spec(TOY, epochs=12)], backbone)
    model, preprocessing = state.run.model, Preprocessing(image_size=64)
    save_checkpoint(
        tmp_path / "toy-bar.safetensors",
        model.state_dict(),
        task="toy-bar",
        kind="regression",
        measure=MAE.to_dict(),
        class_names=[],
        method=model.extractor.spec(),
        head=model.head.spec(),
        preprocessing=preprocessing.to_dict(),
        backbone={"name": backbone.name, "identity": backbone.identity},
        metrics=state.results["metrics"],
        code_version="0",
        provenance={},
    )
    loaded, header = load_task_model(tmp_path / "toy-bar.safetensors", backbone)
    assert (header.kind, header.measure, header.method, header.head) == (
        "regression",
        MAE.to_dict(),
        TOY,
        {"kind": "number"},
    )
    pixels = torch.full((3, 64, 64), 30, dtype=torch.uint8)
    pixels[:, :, 40:52] = 220
    image = preprocessing.normalize(pixels[None])
    (answer,) = loaded.head.decode(loaded.predict(image), [(64, 64)])
    assert answer == pytest.approx(40 / 52, abs=0.3)
    pool = TaskPool(backbone, lambda task: tmp_path / f"{task}.safetensors")
    (found,) = pool.predict(["toy-bar"], [image[0]])
    assert loaded.head.decode(found[None], [(64, 64)]) == [pytest.approx(answer, rel=1e-5)]


def test_data_is_prepared_once(task: Task, bars: Path, tmp_path: Path, manifests: dict[str, Manifest]) -> None:
    again = prepare_task(task, str(bars), str(tmp_path / "shards"))
    assert {split: one.sha256 for split, one in again.items()} == {s: one.sha256 for s, one in manifests.items()}
