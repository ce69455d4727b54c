"""A small task of three classes with real images, written in every layout that the pipeline reads."""

import csv
import io
import itertools
import pickle
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import savemat

from pipeline.data.prepare import prepare_task
from tests.pipeline.data.conftest import LISTS, image_bytes, own_task

TASK = own_task(num_classes=3)
COUNTS = {"train": 12, "val": 6, "test": 7}
NAMES = ("cat", "dog", "newt")


@dataclass(frozen=True)
class Raw:
    """The task in one layout."""

    write: Callable[[Path], None]
    """Writes the data into the task's folder, which exists."""
    of_test: tuple[str, ...] = ()
    """Files and folders below it that belong only to test, besides its images."""
    missed: str = ""
    """What the call with test reports if those are broken; empty if it reports a broken image."""


def _pictures(*splits: str) -> Iterator[tuple[str, int, int, bytes]]:
    """Each picture's split, its number there, its label and its own PNG."""
    for split in splits:
        for i in range(COUNTS[split]):
            yield split, i, i % 3, image_bytes((i, len(split), ord(split[0])))


def _save(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _vtab_lists(folder: Path) -> None:
    lines: dict[str, str] = dict.fromkeys(COUNTS, "")
    for split, i, label, data in _pictures("train", "val", "test"):
        _save(folder / f"images/{split}{i}.png", data)
        lines[split] += f"images/{split}{i}.png {label}\n"
    for split, text in lines.items():
        (folder / LISTS[split]).write_text(text)
    (folder / "train800val200.txt").write_text(lines["train"] + lines["val"])


def _table(folder: Path) -> None:
    rows = [("path", "label", "split")]
    for split, i, label, data in _pictures("test", "train", "val"):
        _save(folder / f"{split}{i}.png", data)
        rows.append((f"{split}{i}.png", NAMES[label], split))
    with open(folder / "samples.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


def _id_lists(folder: Path) -> None:
    lines: dict[str, str] = dict.fromkeys(("images", "image_class_labels", "train_test_split"), "")
    for number, (split, i, label, data) in enumerate(_pictures("test", "train")):
        _save(folder / f"images/{split}{i}.png", data)
        lines["images"] += f"{number} {split}{i}.png\n"
        lines["image_class_labels"] += f"{number} {label + 1}\n"
        lines["train_test_split"] += f"{number} {int(split == 'train')}\n"
    lines["classes"] = "".join(f"{number} {name}\n" for number, name in enumerate(NAMES, 1))
    for name, text in lines.items():
        (folder / f"{name}.txt").write_text(text)


def _flowers(folder: Path) -> None:
    labels: list[int] = []
    numbers: dict[str, list[int]] = {split: [] for split in COUNTS}
    for split, _, label, data in _pictures("test", "train", "val"):
        labels.append(label + 1)
        numbers[split].append(len(labels))
        _save(folder / f"jpg/image_{len(labels):05d}.jpg", data)
    savemat(folder / "imagelabels.mat", {"labels": [labels]})
    names = {"train": "trnid", "val": "valid", "test": "tstid"}
    savemat(folder / "setid.mat", {names[split]: [found] for split, found in numbers.items()})


def _dogs(folder: Path) -> None:
    (folder / "lists").mkdir()
    for split in ("train", "test"):
        files, labels = [], []
        for _, i, label, data in _pictures(split):
            files.append([f"n0-{NAMES[label]}/{split}{i}.jpg"])
            labels.append([label + 1])
            _save(folder / "Images" / files[-1][0], data)
        savemat(folder / f"lists/{split}_list.mat", {"file_list": np.array(files, object), "labels": labels})


def _cars(folder: Path) -> None:
    (folder / "devkit").mkdir()
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array([NAMES], object)})
    for split, name in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        entries = []
        for _, i, label, data in _pictures(split):
            _save(folder / f"cars_{split}/{i}.jpg", data)
            entries.append((label + 1, f"{i}.jpg"))
        structs = np.array(entries, [("class", object), ("fname", object)])
        savemat(folder / "devkit" / name, {"annotations": structs.reshape(1, -1)})


def _cifar_pickles(folder: Path) -> None:
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(NAMES)}, protocol=2))
    for split in ("train", "test"):
        data = np.arange(COUNTS[split], dtype=np.uint8)[:, None].repeat(3072, axis=1) + len(split)
        labels = [i % 3 for i in range(len(data))]
        (folder / split).write_bytes(pickle.dumps({"data": data, "fine_labels": labels}, protocol=2))


def _tars(folder: Path) -> None:
    (folder / "keys").mkdir()
    for split, pictures in itertools.groupby(_pictures("train", "val", "test"), key=lambda picture: picture[0]):
        (folder / split).mkdir()
        (folder / split / "nshards.txt").write_text("1")
        with tarfile.open(folder / split / "0.tar", "w") as tar:
            for _, i, label, data in pictures:
                for name, content in ((f"s{i}.cls", str(label).encode()), (f"s{i}.png", data)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        (folder / f"keys/{split}.txt").write_text("".join(f"s{i}\n" for i in range(COUNTS[split] - 1)))


def _class_folders(folder: Path) -> None:
    for split, i, label, data in _pictures("train", "val", "test"):
        _save(folder / split / NAMES[label] / f"{i}.png", data)


def _photo_folders(folder: Path) -> None:
    for split, i, label, data in _pictures("train", "val", "test"):
        _save(folder / NAMES[label] / f"{split}{i}.png", data)


def _shards(folder: Path) -> None:
    raw = folder.parent.parent / "made-into-shards"
    (raw / TASK.folder).mkdir(parents=True)
    _photo_folders(raw / TASK.folder)
    prepare_task(TASK, str(raw), str(folder.parent), samples_per_shard=5)


EVERY_LAYOUT = {
    "vtab-lists": Raw(_vtab_lists, ("test.txt",), "test.txt: no such file"),
    "table": Raw(_table),
    "id-lists": Raw(_id_lists),
    "flowers": Raw(_flowers),
    "dogs": Raw(_dogs, ("lists/test_list.mat",), "test_list.mat: no such file"),
    "cars": Raw(
        _cars, ("devkit/cars_test_annos_withlabels.mat", "cars_test"), "cars_test_annos_withlabels.mat: no such file"
    ),
    "cifar-pickles": Raw(_cifar_pickles, ("test",), "test"),
    "tars": Raw(_tars, ("test", "keys/test.txt"), "test/: has neither nshards.txt nor shards.txt"),
    "class-folders": Raw(_class_folders, ("test",), "test/: no such folder"),
    "photo-folders": Raw(_photo_folders),
    "shards": Raw(_shards, ("test", "trainval"), "test: no manifest"),
}
