"""Folders of foreign tars: splits, key lists and label maps, also from an object store."""

import dataclasses
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.data.prepare import prepare_task
from pipeline.data.raw import tars
from pipeline.data.shards.manifest import Manifest
from pipeline.data.sources import DataError, Source, open_source
from pipeline.storage import files
from pipeline.tasks.catalogue import TASKS, Task
from tests.pipeline.data.conftest import faults_of

COUNTS = {"train": 12, "val": 6, "test": 7}


@pytest.fixture(autouse=True)
def _forget_copies() -> None:
    """The stores of different tests use the same addresses."""
    tars._fetched.cache_clear()


def picture(split: str, number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, len(split), 0)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def write_tar(path: Path, split: str, numbers: range, label: Callable[[int], int] = lambda i: i % 3) -> None:
    """Writes samples s0000000, ... in the format of clip_benchmark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            for kind, data in (("cls", str(label(i)).encode()), ("webp", picture(split, i))):
                info = tarfile.TarInfo(f"s{i:07d}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def make(folder: Path, *, splits: tuple[str, ...] = ("train", "test"), **counts: int) -> Path:
    """Writes splits of tars with five samples each."""
    for split in splits:
        count = {**COUNTS, **counts}[split]
        starts = range(0, count, 5)
        for number, start in enumerate(starts):
            write_tar(folder / split / f"{number}.tar", split, range(start, min(count, start + 5)))
        (folder / split / "nshards.txt").write_text(f"{len(starts)}\n")
    return folder


def write_keys(folder: Path, **keys: list[int]) -> None:
    (folder / "keys").mkdir(exist_ok=True)
    for split, numbers in keys.items():
        (folder / "keys" / f"{split}.txt").write_text("".join(f"s{number:07d}\n" for number in numbers))


def images(source: Source, split: str) -> list[bytes]:
    return [sample.read() for sample in source.splits[split]]


def faults(folder: Path, task: Task) -> list[str]:
    with pytest.raises(DataError) as error:
        open_source(str(folder), task)
    return error.value.faults


def test_the_tars_of_clip_benchmark_are_read_in_order(tmp_path: Path, task: Task) -> None:
    folder = make(tmp_path / "tiny", splits=("train", "val", "test"))
    source = open_source(str(tmp_path), task)
    assert (source.layout, source.class_names, source.val_origin) == ("tars", ["0", "1", "2"], "")
    for split, count in COUNTS.items():
        assert images(source, split) == [picture(split, i) for i in range(count)]
        assert [sample.label for sample in source.splits[split]] == [i % 3 for i in range(count)]
    assert source.splits["test"][5].key == "test-000005-s0000005"
    assert source.splits["test"][5].path == str(folder / "test/1.tar")
    (folder / "classnames.txt").write_text("cat\ndog\nnewt\nwolf\n")
    assert open_source(str(tmp_path), task).class_names == ["cat", "dog", "newt", "wolf"]


def test_a_list_of_tars_with_ranges_is_read_in_its_order(tmp_path: Path, task: Task) -> None:
    folder = make(tmp_path / "tiny")
    (folder / "train/nshards.txt").unlink()
    (folder / "train/shards.txt").write_text("2.tar\n{0..1}.tar\n")
    source = open_source(str(tmp_path), task)
    order = sorted(source.splits["train"] + source.splits["val"], key=lambda sample: sample.key[-20:])
    expected = [picture("train", i) for i in range(12)]
    assert [sample.read() for sample in order] != expected  # the number in the key is the position in the list
    assert sorted(sample.read() for sample in order) == sorted(expected)
    assert source.val_origin == "a stratified tenth of train, seed 0"
    first = min(source.splits["train"] + source.splits["val"], key=lambda sample: sample.key)
    assert first.read() == picture("train", 10)


def test_key_lists_say_exactly_which_samples_and_in_which_order(tmp_path: Path, task: Task) -> None:
    folder = make(tmp_path / "tiny")
    write_keys(folder, train=[7, 2, 11, 0], val=[1, 6], test=[5, 4])
    source = open_source(str(tmp_path), task)
    assert images(source, "train") == [picture("train", i) for i in (7, 2, 11, 0)]
    assert images(source, "val") == [picture("train", i) for i in (1, 6)]
    assert images(source, "test") == [picture("test", i) for i in (5, 4)]
    assert [sample.label for sample in source.splits["train"]] == [1, 2, 2, 0]
    make(folder, splits=("val",), val=8)
    assert images(open_source(str(tmp_path), task), "val") == [picture("val", i) for i in (1, 6)]


def test_keys_that_are_missing_double_or_in_two_splits_are_told_together(tmp_path: Path, task: Task) -> None:
    folder = make(tmp_path / "tiny")
    write_keys(folder, train=[7, 2, 99, 7], val=[1, 2], test=[])
    assert faults(folder, task) == [
        "keys/train.txt:3: no tar of the split has a sample 's0000099'",
        "keys/train.txt:4: 's0000007' stands in line 1 already",
        "keys/test.txt: lists no sample",
        "val: val-000001-s0000002 is in train too; mend keys/val.txt or train.txt",
    ]


def test_which_800_images_are_meant_is_never_guessed(tmp_path: Path, task: Task) -> None:
    vtab = dataclasses.replace(task, train_size=8, val_size=2, test_size=7)
    folder = make(tmp_path / "tiny")
    assert faults(folder, vtab) == [
        "train: has 12 samples, but vtab-tiny uses 8 particular ones; list their keys in keys/train.txt, one a line",
        "val: has 0 samples, but vtab-tiny uses 2 particular ones; list their keys in keys/val.txt, one a line",
    ]
    write_keys(folder, train=[3, 1, 2, 4, 5, 6, 7, 8])
    (fault,) = faults(folder, vtab)
    assert fault.startswith("val: has 0 samples")
    write_keys(folder, val=[0, 9])
    source = open_source(str(folder), vtab)
    assert (source.subset_reasons, len(source.splits["test"])) == ([], 7)


def test_tars_that_hold_a_benchmarks_own_splits_need_no_key_list(tmp_path: Path, task: Task) -> None:
    vtab = dataclasses.replace(task, train_size=8, val_size=2, test_size=7)
    make(tmp_path / "tiny", splits=("train", "val", "test"), train=8, val=2)
    assert open_source(str(tmp_path), vtab).subset_reasons == []


def test_what_is_wrong_with_tars_is_told_together(tmp_path: Path, task: Task) -> None:
    folder = make(tmp_path / "tiny", splits=("train", "val"))
    write_tar(folder / "train/1.tar", "train", range(4, 8), lambda i: i - 5)
    (folder / "train/nshards.txt").write_text("4")
    (folder / "val/nshards.txt").unlink()
    assert faults(folder, task) == [
        "train/1.tar: sample 's0000004' stands in 0.tar too",
        "train/1.tar: sample 's0000004': label -1 is out of range; 3 classes: 0 to 2",
        "train/3.tar: no file 'train/3.tar' (No such file or directory)",
        "val/: has tars, and no nshards.txt (how many), shards.txt (which) or manifest of ours",
        "test/: has neither nshards.txt nor shards.txt",
    ]


def test_a_link_to_a_tar_elsewhere_is_refused(tmp_path: Path, task: Task) -> None:
    folder = make(tmp_path / "tiny")
    (folder / "train/0.tar").rename(tmp_path / "0.tar")
    (folder / "train/0.tar").symlink_to(tmp_path / "0.tar")
    (fault,) = faults(folder, task)
    assert fault.startswith("train/0.tar: 'train/0.tar' leads out of")


def test_a_name_of_a_tar_is_never_executed(
    s3_folder: Path, tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make(tmp_path / "raw/tiny")
    (folder / "train/nshards.txt").unlink()
    (folder / "train/shards.txt").write_text("pipe:touch executed\n0.tar|touch executed\n")
    upload(folder)
    for place, reason in (("raw/tiny", "no file 'train/"), ("s3://bucket/data/tiny", "no object s3://")):
        with pytest.raises(DataError) as error:
            open_source(place, task)
        assert [fault.rpartition(reason)[0] for fault in error.value.faults] == [
            "train/pipe:touch executed: ",
            "train/0.tar|touch executed: ",
        ]
    assert not (tmp_path / "executed").exists()


def test_finer_labels_become_the_tasks_in_the_folder_that_has_them(tmp_path: Path, task: Task) -> None:
    mapped = dataclasses.replace(
        task, num_classes=2, other_folders=("wds_tiny",), label_maps={"wds_tiny": (0, 0, 1)}, test_size=7
    )
    folder = make(tmp_path / "wds_tiny", splits=("train", "val", "test"))
    source = open_source(str(tmp_path), mapped)
    assert (source.class_names, source.subset_reasons) == (["0", "1"], [])
    assert [sample.label for sample in source.splits["test"]] == [[0, 0, 1][i % 3] for i in range(7)]
    assert images(source, "test") == [picture("test", i) for i in range(7)]
    (folder / "classnames.txt").write_text("a\nb\nc\nd\n")
    assert faults(folder, mapped) == ["has 4 classes, but the label map has new labels for 3"]
    (folder / "classnames.txt").unlink()
    folder.rename(tmp_path / "tiny")
    assert "label 2 is out of range; 2 classes: 0 to 1" in faults(tmp_path, mapped)[0]


def test_dsprites_of_clip_benchmark_gets_vtabs_classes(tmp_path: Path) -> None:
    folder = tmp_path / "wds_vtab-dsprites_label_orientation"
    for split in ("train", "test"):
        write_tar(folder / split / "0.tar", split, range(40), lambda i: 39 - i)
        (folder / split / "nshards.txt").write_text("1")
    write_keys(folder, train=list(range(30)), val=list(range(30, 40)))
    source = open_source(str(tmp_path), TASKS["vtab-dsprites_ori"])
    assert len(source.class_names) == 16
    assert [sample.label for sample in source.splits["test"]] == [int((39 - i) / 2.5) for i in range(40)]


def test_tars_go_into_shards_with_their_own_bytes(tmp_path: Path, task: Task) -> None:
    make(tmp_path / "raw/tiny")
    manifests = prepare_task(task, str(tmp_path / "raw"), str(tmp_path / "shards"))
    assert not faults_of(manifests["trainval"])
    assert manifests["trainval"].num_samples == 12


def upload(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            files.copy(str(path), f"s3://bucket/data/tiny/{path.relative_to(folder)}")


def sha256s(manifests: dict[str, Manifest]) -> dict[str, str]:
    return {split: manifest.sha256 for split, manifest in manifests.items()}


def test_tars_in_an_object_store_are_those_on_disk(s3_folder: Path, tmp_path: Path, task: Task) -> None:
    folder = make(tmp_path / "raw/tiny", splits=("train", "val", "test"))
    (folder / "classnames.txt").write_text("cat\ndog\nnewt\n")
    write_keys(folder, train=[3, 1, 2])
    upload(folder)
    there = open_source("s3://bucket/data", task)
    here = open_source(str(tmp_path / "raw"), task)
    assert (there.layout, there.class_names) == (here.layout, here.class_names)
    for split in COUNTS:
        assert images(there, split) == images(here, split)
    local = prepare_task(task, str(tmp_path / "raw"), str(tmp_path / "local"))
    remote = prepare_task(task, "s3://bucket/data", str(tmp_path / "remote"))
    assert sha256s(remote) == sha256s(local)


def test_tars_that_are_copied_again_do_not_look_changed(
    s3_folder: Path, tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(make(tmp_path / "raw/tiny"))
    prepare_task(task, "s3://bucket/data", str(tmp_path / "shards"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*")}
    tars._fetched.cache_clear()  # as in a new process
    prepare_task(task, "s3://bucket/data", str(tmp_path / "shards"))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*")} == before

    def refuse(uri: str) -> Path:
        raise AssertionError(f"{uri} is copied again in one process")

    monkeypatch.setattr(files, "fetch", refuse)
    open_source("s3://bucket/data", task)


def test_a_tar_that_is_missing_in_the_store_is_told(s3_folder: Path, tmp_path: Path, task: Task) -> None:
    upload(make(tmp_path / "raw/tiny"))
    files.delete("s3://bucket/data/tiny/train/1.tar")
    with pytest.raises(DataError, match=r"train/1.tar: no object s3://bucket/data/tiny/train/1.tar"):
        open_source("s3://bucket/data", task)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_tars_and_keys_from_windows_are_read(encoding: str, tmp_path: Path, task: Task) -> None:
    folder = make(tmp_path / "tiny", splits=("train", "val", "test"))
    (folder / "train/deep").mkdir()
    (folder / "train/2.tar").rename(folder / "train/deep/2.tar")
    (folder / "train/nshards.txt").unlink()
    (folder / "train/shards.txt").write_bytes("{0..1}.tar\r\ndeep\\2.tar\r\n".encode(encoding))
    (folder / "test/nshards.txt").write_bytes("2\r\n".encode(encoding))
    write_keys(folder, train=[11, 2])
    keys = folder / "keys/train.txt"
    keys.write_bytes(keys.read_text().replace("\n", "\r\n").encode(encoding))
    source = open_source(str(tmp_path), task)
    assert images(source, "train") == [picture("train", i) for i in (11, 2)]
    assert images(source, "test") == [picture("test", i) for i in range(7)]


def test_a_key_list_that_is_no_text_is_named_with_its_folder(tmp_path: Path, task: Task) -> None:
    folder = make(tmp_path / "tiny")
    write_keys(folder, train=[1])
    (folder / "keys/train.txt").write_bytes(b"s0000001\n\xe9\n")
    assert faults(folder, task)[0].startswith("keys/train.txt:2: not a UTF-8 text: byte 9 of the file is 0xe9")


def test_a_key_list_names_samples_whose_names_have_dots(tmp_path: Path, task: Task) -> None:
    folder = make(tmp_path / "tiny")
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            members = [(member.name.replace("s00", "v1.s00"), tar.extractfile(member)) for member in tar]
            contents = [(name, file.read()) for name, file in members if file is not None]
        with tarfile.open(path, "w") as tar:
            for name, data in contents:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (folder / "keys").mkdir()
    (folder / "keys/train.txt").write_text("v1.s0000011\nv1.s0000002\n")
    source = open_source(str(tmp_path), task)
    found = images(source, "train") + images(source, "val")  # val is drawn from train
    assert sorted(found) == sorted(picture("train", i) for i in (11, 2))
    assert {sample.key[-11:] for split in ("train", "val") for sample in source.splits[split]} == {
        "v1-s0000011",
        "v1-s0000002",
    }


def test_a_key_list_made_on_windows_names_samples_in_folders(tmp_path: Path, task: Task) -> None:
    folder = make(tmp_path / "tiny")
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            contents = [(member, file.read()) for member in tar if (file := tar.extractfile(member)) is not None]
        with tarfile.open(path, "w") as tar:
            for member, data in contents:
                member.name = f"photos/{member.name}"
                tar.addfile(member, io.BytesIO(data))
    (folder / "keys").mkdir()
    (folder / "keys/train.txt").write_text("photos\\s0000011\nphotos\\s0000002\n")
    source = open_source(str(tmp_path), task)
    found = images(source, "train") + images(source, "val")
    assert sorted(found) == sorted(picture("train", i) for i in (11, 2))
