"""Checkpoints of a unit in training: training resumes from the furthest whole one, and no other is ever read."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hst.backbone import Backbone
from pipeline.storage import files
from pipeline.training import checkpoints
from pipeline.training.loop import fit
from pipeline.training.task_run import RunState
from pipeline.training.unit import RunSpec, build_run
from pipeline.training.workers import Workers


@pytest.fixture(scope="module")
def of_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unit")


@pytest.fixture
def unit(tiny_spec: Callable[..., RunSpec], tiny_backbone: Backbone, of_epochs: Path, tmp_path: Path) -> Path:
    """A unit's folder with checkpoints of three epochs, in the folders of two attempts."""
    places = ["0001-0/checkpoint_a", "0001-0/checkpoint_b", "0002-0/checkpoint_a"]
    if not any(of_epochs.iterdir()):

        def report(states: list[RunState], finished: bool) -> None:
            folder = of_epochs / places[states[0].epochs_done - 1]
            folder.mkdir(parents=True, exist_ok=True)
            checkpoints.save(folder, states)

        fit([build_run(tiny_spec(), tiny_backbone.double(), Workers())], workers=Workers(), report=report)
    return Path(shutil.copytree(of_epochs, tmp_path / "unit"))


def test_the_furthest_is_found_whoever_wrote_it(unit: Path) -> None:
    found = checkpoints.find(str(unit))
    assert found is not None
    assert (found.uri, found.progress, found.finished) == (str(unit / "0002-0/checkpoint_a"), (3, 0), True)
    (result,) = found.results()
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert result.tensors.keys() == found.states()[0]["model"].keys()
    assert checkpoints.progress(str(unit)) == 3


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "complete.json").unlink(), None),
        (lambda folder: (folder / "state.pt").unlink(), "state.pt"),
        (lambda folder: flip(folder / "state.pt"), "its sha256 is"),
        (lambda folder: flip(folder / "result.json"), "its sha256 is"),
        (lambda folder: cut(folder / "tensors-0.safetensors"), "its sha256 is"),
        (lambda folder: cut(folder / "complete.json"), "a checkpoint is not whole"),
        (lambda folder: (folder / "complete.json").write_text("[]"), "a checkpoint is not whole"),
        (lambda folder: (folder / "complete.json").write_text("{}"), "a checkpoint is not whole"),
    ],
)
def test_one_that_is_not_whole_is_passed_over_for_the_next_best(
    damage: Callable[[Path], None], told: str | None, unit: Path
) -> None:
    damage(unit / "0002-0/checkpoint_a")
    said: list[str] = []
    found = checkpoints.find(str(unit), say=said.append)
    assert found is not None
    assert (found.uri, found.progress, found.finished) == (str(unit / "0001-0/checkpoint_b"), (2, 0), False)
    assert len(said) == (told is not None)
    assert told is None or told in said[0]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_file_that_changes_between_finding_and_reading_is_an_error(unit: Path) -> None:
    found = checkpoints.find(str(unit))
    assert found is not None
    flip(unit / "0002-0/checkpoint_a/state.pt")
    with pytest.raises(ValueError, match=r"state.pt: its sha256 is .*, it was"):
        found.states()


def test_a_checkpoint_written_over_another_is_never_half_of_each(unit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is deleted first and written last."""
    folder = unit / "0002-0/checkpoint_a"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(folder, [])
    assert not (folder / "complete.json").exists()


def test_a_unit_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert checkpoints.find(str(tmp_path / "nothing")) is None
    assert checkpoints.progress(str(tmp_path / "nothing")) is None


def test_what_is_discarded_is_gone(unit: Path) -> None:
    checkpoints.discard(str(unit))
    assert checkpoints.find(str(unit)) is None
    assert not [path for path in unit.rglob("*") if path.is_file()]


def test_storage_that_does_not_answer_is_no_broken_checkpoint(unit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resuming from an older one would throw finished work away."""
    read = files.read_bytes

    def away(uri: str) -> bytes:
        if uri.endswith("0002-0/checkpoint_a/state.pt"):
            raise files.StorageError(f"{uri}: answered 503; given up after 5 failures")
        return read(uri)

    monkeypatch.setattr(files, "read_bytes", away)
    with pytest.raises(files.StorageError, match="answered 503"):
        checkpoints.find(str(unit))


def test_progress_passes_over_what_is_just_written_or_removed(unit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(unit / "0002-0/checkpoint_a/complete.json")
    names = files.list_prefix(str(unit))
    (unit / "0001-0/checkpoint_b/complete.json").unlink()
    monkeypatch.setattr(files, "list_prefix", lambda uri: names)
    assert checkpoints.progress(str(unit)) == 1
