"""Folders of classes: what is left aside in them, and which names are one class."""

import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.raw.left_aside import HIDDEN, is_hidden, left_aside_notes
from pipeline.data.sources import DataError, open_source
from tests.pipeline.data.conftest import make_photos, own_task

NFC = "\N{LATIN SMALL LETTER E WITH ACUTE}meu"
NFD = unicodedata.normalize("NFD", NFC)
HIDDEN_FOLDERS = (
    ".ipynb_checkpoints",
    "@eaDir",
    ".thumbnails",
    "__MACOSX",
    ".Trash-1000",
    "lost+found",
    "$RECYCLE.BIN",
    "#recycle",
    "@Recycle",
)
HIDDEN_FILES = ("._0.jpg", ".0.jpg.swp", "Thumbs.db", "desktop.ini", ".DS_Store")


def make_splits(root: Path, **folders: int) -> Path:
    """Makes empty images in the same class folders of train and test."""
    for split in ("train", "test"):
        make_photos(root / split, **folders)
    return root


@pytest.fixture(params=["class-folders", "photo-folders"])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The folder of a task in either layout, with its folder of classes (cat and dog)."""
    photos = tmp_path / "photos"
    make = make_splits if request.param == "class-folders" else make_photos
    make(photos, cat=20, dog=20)
    return photos, photos / ("train" if request.param == "class-folders" else "")


def faults(photos: Path) -> list[str]:
    with pytest.raises(DataError) as error:
        open_source("", own_task(data=str(photos)))
    return error.value.faults


@pytest.mark.parametrize("name", HIDDEN_FOLDERS)
def test_what_a_system_keeps_in_a_folder_is_no_sample(name: str, layout: tuple[Path, Path]) -> None:
    photos, classes = layout
    before = open_source("", own_task(data=str(photos)))
    for place in (classes / "cat", classes / "cat/deep", classes):
        shutil.copytree(photos / next(photos.rglob("dog")), place / name)
    after = open_source("", own_task(data=str(photos)))
    assert (after.splits, after.class_names, before.notes) == (before.splits, ["cat", "dog"], [])
    (note,) = after.notes
    assert note.startswith("left aside, as hidden, or a system's own: 3 (")
    assert f"cat/deep/{name}/" in note


@pytest.mark.parametrize("name", HIDDEN_FILES)
def test_what_a_system_writes_beside_images_is_no_sample(name: str, layout: tuple[Path, Path]) -> None:
    photos, classes = layout
    before = open_source("", own_task(data=str(photos)))
    for place in ("cat", "cat/deep", "dog", "."):
        (classes / place / name).write_bytes(b"x")
    after = open_source("", own_task(data=str(photos)))
    assert after.splits == before.splits
    (note,) = after.notes
    assert ": 4 (" in note
    assert note.endswith(" and 1 more)")


def test_names_that_only_resemble_those_of_systems_are_classes() -> None:
    assert not any(map(is_hidden, ("thumbnails", "eaDir", "MACOSX", "recycle", "tmp", "icon", "lost", "a.b")))
    assert left_aside_notes({HIDDEN: ["a/.x/"]}) == ["left aside, as hidden, or a system's own: 1 (a/.x/)"]


def test_an_image_beside_the_folders_is_a_fault_in_every_layout(layout: tuple[Path, Path]) -> None:
    photos, classes = layout
    (classes / "loose.JPG").write_bytes(b"")
    (fault,) = faults(photos)
    assert "loose.JPG: an image beside the classes' folders" in fault


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("cat ", "'cat ' (b'cat ') and 'cat' (b'cat', {0}cat) are the same class"),
        ("Cat", "'cat' (b'cat') and 'Cat' (b'Cat', {0}Cat) differ by case alone"),
    ],
)
def test_two_folders_of_one_name_are_a_fault_that_names_both(
    other: str, message: str, layout: tuple[Path, Path]
) -> None:
    photos, classes = layout
    make_photos(classes, **{other: 4})
    prefix = f"{classes.relative_to(photos)}/".removeprefix("./")
    (fault,) = faults(photos)
    assert message.format(prefix) in fault


def test_two_unicode_forms_of_a_name_are_two_folders_of_one_class(layout: tuple[Path, Path]) -> None:
    photos, classes = layout
    make_photos(classes, **{NFC: 4, NFD: 4})
    (fault,) = faults(photos)
    assert r"b'\xc3\xa9meu'" in fault
    assert r"b'e\xcc\x81meu'" in fault


def test_a_class_may_be_spelled_in_two_unicode_forms_in_two_splits(tmp_path: Path) -> None:
    make_photos(tmp_path / "train", **{NFD: 20, "zebra": 20, "cat ": 20})
    make_photos(tmp_path / "test", **{NFC: 4, "zebra": 4, "cat": 4})
    source = open_source("", own_task(data=str(tmp_path)))
    assert source.class_names == ["cat", "zebra", NFC]
    assert {Path(s.path).parts[len(tmp_path.parts) + 1] for s in source.splits["test"] if s.label == 2} == {NFC}
    assert {Path(s.path).parts[len(tmp_path.parts) + 1] for s in source.splits["train"] if s.label == 2} == {NFD}


def test_a_class_that_differs_by_case_in_another_split_is_shown_with_both(tmp_path: Path) -> None:
    make_photos(tmp_path / "train", cat=20, dog=20)
    make_photos(tmp_path / "test", Cat=4, dog=4)
    told = faults(tmp_path)
    assert "test/Cat: 'Cat' (b'Cat') and 'cat' (b'cat', train/cat) differ by case alone" in told[0]
    assert told[1:] == ["test/Cat: train has no class of this name"]


def test_a_folder_that_cannot_be_read_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photos(tmp_path, cat=20, dog=20)
    real = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("cat/deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)
    assert faults(tmp_path) == [f"{tmp_path}/cat/deep: cannot be read (Permission denied)"]


def test_class_names_of_a_task_file_may_be_in_another_unicode_form(
    tmp_path: Path,
) -> None:
    make_photos(tmp_path / "photos", **{NFD: 10, "dog": 10})
    own = own_task(data=str(tmp_path / "photos"), class_names=("dog", NFC), num_classes=2)
    assert open_source("", own).class_names == ["dog", NFC]
