"""Members of foreign tars whose names have dots: which are samples, and which are told."""

import io
import tarfile
from pathlib import Path

import pytest
import webdataset

from pipeline.data.images import IMAGE_MEMBERS
from pipeline.data.prepare import prepare_task
from pipeline.data.raw.left_aside import HIDDEN
from pipeline.data.raw.tar_members import FURTHER
from pipeline.data.raw.tar_samples import read_tar
from pipeline.data.samples import Listing
from pipeline.tasks.catalogue import Task
from tests.pipeline.data.conftest import image_bytes


def write_tar(path: Path, names: list[str]) -> Path:
    """Images are red by their place among the members, labels are 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            data = b"1" if name.lower().endswith(".cls") else image_bytes((number, 0, 0))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read(folder: Path, *names: str) -> tuple[list[str], Listing]:
    """The keys that are found among members of these names, and the listing."""
    listing = Listing()
    path = write_tar(folder / "0.tar", list(names))
    return [sample.key for sample in read_tar(str(path), "0.tar", listing)], listing


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (("photo.v2.jpg", "photo.v2.cls"), ["photo.v2"]),
        (("photo.v1.jpg", "photo.v1.cls", "photo.v2.PNG", "photo.v2.cls"), ["photo.v1", "photo.v2"]),
        (("2024.01.05 cat.jpg", "2024.01.05 cat.cls", "2024.01.06.cls", "2024.01.06.webp"), None),
        (("a.b/c.jpg", "a.b/c.cls", "a.b/c.d.jpg.json"), ["a.b/c"]),
        (("a.b/c.d.jpg", "a.b/c.d.cls", "a/c.d.jpg", "a/c.d.cls"), ["a.b/c.d", "a/c.d"]),
        (("./v1.0/s1.jpg", "./v1.0/s1.cls"), ["./v1.0/s1"]),
    ],
)
def test_names_with_dots_are_understood_if_image_and_label_agree(
    names: tuple[str, ...], keys: list[str] | None, tmp_path: Path
) -> None:
    found, listing = read(tmp_path, *names)
    assert (found, listing.faults) == (keys or ["2024.01.05 cat", "2024.01.06"], [])


@pytest.mark.parametrize("further", ["s1.seg.png", "s1.coarse.cls", "s1.left.eye.jpg"])
def test_a_further_member_of_a_sample_is_left_aside_and_told(further: str, tmp_path: Path) -> None:
    keys, listing = read(tmp_path, "s1.jpg", "s1.cls", further, "s1.json")
    assert (keys, listing.faults, listing.left_aside) == (["s1"], [], {FURTHER: [f"0.tar/{further}"]})


def test_a_sample_whose_own_key_has_dots_may_have_further_members(tmp_path: Path) -> None:
    keys, listing = read(tmp_path, "v1.s1.jpg", "v1.s1.cls", "v1.s1.seg.png")
    assert (keys, listing.faults, listing.left_aside) == (["v1.s1"], [], {FURTHER: ["0.tar/v1.s1.seg.png"]})


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (("b.v2.jpg",), "0.tar: sample 'b.v2' has no cls; no sample uses b.v2.jpg"),
        (("b.v2.cls",), f"0.tar: sample 'b.v2' has no image ({', '.join(IMAGE_MEMBERS)}); no sample uses b.v2.cls"),
        (("x/b.v2.jpg", "b.v2.jpg", "b.v2.cls"), "0.tar: sample 'x/b.v2' has no cls; no sample uses x/b.v2.jpg"),
        (
            ("photo.jpg", "photo.cls", "photo.v2.jpg", "photo.v2.cls"),
            "0.tar: sample 'photo.v2' may be one of its own, or further members of sample 'photo' (WebDataset ends a "
            "key at the first dot); rename the one or the other, without dots",
        ),
        (
            ("s.v1.jpg", "s.v1.png", "s.v1.cls"),
            "0.tar: sample 's.v1' has more than one image (s.v1.jpg, s.v1.png)",
        ),
    ],
)
def test_a_member_that_no_sample_uses_or_two_might_is_a_fault_that_names_it(
    names: tuple[str, ...], fault: str, tmp_path: Path
) -> None:
    _, listing = read(tmp_path, "a.jpg", "a.cls", *names)
    assert listing.faults == [fault]


def test_what_macos_and_others_add_to_a_tar_is_left_aside(tmp_path: Path) -> None:
    hidden = ["._a.jpg", "._a.cls", "__MACOSX/._a.jpg", "x/.ipynb_checkpoints/a-checkpoint.jpg", "x/@eaDir/a.jpg/m.jpg"]
    keys, listing = read(tmp_path, "a.jpg", "a.cls", *hidden, "._a.json")
    assert (keys, listing.faults) == (["a"], [])
    assert listing.left_aside == {HIDDEN: [f"0.tar/{name}" for name in hidden]}


def test_shards_that_are_written_from_dotted_names_are_read_by_webdataset(tmp_path: Path, task: Task) -> None:
    for split in ("train", "val", "test"):
        names = [f"photo.{split}{i}.{kind}" for i in range(4) for kind in ("png", "cls")]
        write_tar(tmp_path / f"raw/tiny/{split}/0.tar", names)
        (tmp_path / f"raw/tiny/{split}/nshards.txt").write_text("1")
    manifest = prepare_task(task, str(tmp_path / "raw"), str(tmp_path / "shards"))["train"]
    shard = manifest.shard_uri(manifest.shards[0])
    samples = list(webdataset.WebDataset(shard, shardshuffle=False, handler=webdataset.reraise_exception))
    assert [sample["__key__"] for sample in samples] == [f"train-{i:06d}-photo-train{i}" for i in range(4)]
    assert all(set(sample) >= {"png", "cls"} for sample in samples)
