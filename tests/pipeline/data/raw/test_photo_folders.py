"""Photos sorted by class, without splits: how they are split, and what is refused."""

import os
from collections import Counter
from pathlib import Path

from PIL import Image

from pipeline.data.prepare import prepare_task
from pipeline.data.sources import open_source
from pipeline.tasks.catalogue import Task
from tests.pipeline.data.conftest import make_photos, own_task, refused


def test_photos_without_splits_give_a_fifth_to_test_and_a_tenth_of_the_rest_to_val(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", dog=50, cat=25, emu=2)
    (photos / "README.txt").write_text("of the photos")
    source = open_source("/nowhere", own_task(data=str(photos)), seed=3)
    assert (source.layout, source.class_names, source.subset_reasons) == ("photo-folders", ["cat", "dog", "emu"], [])
    assert source.test_origin == "a stratified fifth of all images, seed 3"
    assert source.val_origin == "a stratified tenth of train, seed 3"
    counts = {split: Counter(sample.label for sample in samples) for split, samples in source.splits.items()}
    assert counts == {"train": {0: 18, 1: 36, 2: 1}, "val": {0: 2, 1: 4}, "test": {0: 5, 1: 10, 2: 1}}
    samples = [sample for split in source.splits.values() for sample in split]
    assert sorted(sample.path for sample in samples) == sorted(map(str, photos.rglob("*.jpg")))
    assert all(f"/{source.class_names[sample.label]}/" in sample.path for sample in samples)
    assert len({sample.key for sample in samples}) == len(samples)
    assert open_source("/nowhere", own_task(data=str(photos)), seed=3) == source
    assert open_source("/nowhere", own_task(data=str(photos)), seed=4).splits["test"] != source.splits["test"]


def test_photos_that_are_added_move_few_of_the_others(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", dog=40, cat=40)
    before = {sample.path for sample in open_source("", own_task(data=str(photos))).splits["test"]}
    for i in range(10):
        (photos / "cat" / f"new{i}.jpg").write_bytes(b"")
    after = {sample.path for sample in open_source("", own_task(data=str(photos))).splits["test"]}
    assert len(before - after) <= 2  # of 8 cats in test; an independent draw would keep only one or two
    assert {path for path in before if "/dog/" in path} <= after


def test_what_is_wrong_with_photo_folders_is_reported_together(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", cat=5, dog=1, emu=0)
    (photos / "loose.PNG").write_bytes(b"")
    (photos / "cat/notes.txt").write_text("x")
    (tmp_path / "secret.png").write_bytes(b"")
    os.symlink(tmp_path / "secret.png", photos / "cat/link.png")
    os.symlink(photos / "cat/deep", photos / "dog/more")
    message = refused(tmp_path, own_task(data=str(photos)))
    for part in (
        "loose.PNG: an image beside the classes' folders",
        "cat/notes.txt: expected only images here (.png, .jpg, .jpeg, .webp, .tif, .tiff, .bmp, .gif); move it away",
        "'cat/link.png' leads out of",
        "dog/more: a link to a folder",
        "dog/: 1 image(s); a class needs at least 2",
        "emu/: 0 image(s)",
    ):
        assert part in message
    (tmp_path / "pairs").mkdir()
    pairs = make_photos(tmp_path / "pairs", cat=2, dog=2)
    assert "no class of train has 2 images to make one from" in refused(tmp_path, own_task(data=str(pairs)))


def test_a_folder_that_is_named_like_a_split_is_no_class(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", Test=5, other=5)
    assert "has none of train800.txt" in refused(tmp_path, own_task(data=str(photos)))


def test_images_without_class_folders_are_told_what_is_expected(tmp_path: Path, task: Task) -> None:
    photos = tmp_path / "tiny"
    photos.mkdir()
    (photos / "0.jpg").write_bytes(b"")
    expected = f"{photos}: no class folders in it: <folder>/<class>/<image> is expected (or one of train800.txt"
    assert expected in refused(tmp_path, own_task(data=str(photos)))
    assert "no class folders" not in refused(tmp_path, task)  # this layout is not for benchmarks


def test_a_benchmarks_test_is_never_made_from_photos_without_splits(tmp_path: Path, task: Task) -> None:
    make_photos(tmp_path / "tiny", cat=10, dog=10, emu=10)
    message = refused(tmp_path, task)
    assert f"{tmp_path}/tiny: has none of train800.txt" in message
    assert "<image>" not in message


def test_shards_of_photos_say_how_their_test_was_made(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", dog=20, cat=20)
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    own = own_task(data=str(photos))
    manifests = prepare_task(own, "", str(tmp_path / "shards"), seed=5)
    origin = "a stratified fifth of all images, seed 5"
    assert {split: manifest.source["test_origin"] for split, manifest in manifests.items()} == dict.fromkeys(
        ("train", "val", "trainval", "test"), origin
    )
    again = open_source("", own_task(data=str(tmp_path / "shards/own-x")))
    assert (again.test_origin, again.val_origin) == (origin, "a stratified tenth of train, seed 5")
