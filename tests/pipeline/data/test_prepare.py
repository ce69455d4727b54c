"""Shards: which bytes they have, when they are written again, and what is refused."""

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.data import prepare as shards_module
from pipeline.data.errors import DataError
from pipeline.data.prepare import discard_task, prepare_task
from pipeline.data.shards.manifest import Manifest, load_manifest
from pipeline.data.sources import open_source
from pipeline.storage import files
from pipeline.tasks.catalogue import Task
from tests.pipeline.data.conftest import faults_of, image_bytes

MakeLists = Callable[..., Path]
MakeShards = Callable[..., dict[str, Manifest]]


def contents(root: Path) -> dict[str, str]:
    """Every tar and manifest below a folder, by relative path."""
    paths = [*root.rglob("*.tar"), *root.rglob("manifest.json")]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def inodes(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


def test_shards_are_plain_tars_of_the_sources_own_bytes(make_shards: MakeShards, tmp_path: Path, task: Task) -> None:
    manifests = make_shards(samples_per_shard=5)
    source = open_source(str(tmp_path / "raw"), task)
    for split in ("train", "val", "test"):
        found = []
        for shard in manifests[split].shards:
            path = tmp_path / "shards/vtab-tiny" / split / shard.name
            data = path.read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
            with tarfile.open(path) as tar:
                members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
            assert len(members) == 2 * shard.num_samples
            found += members
        expected = []
        for sample in source.splits[split]:
            expected.append((f"{sample.key}.cls", str(sample.label).encode()))
            expected.append((f"{sample.key}.png", Path(sample.path).read_bytes()))
        assert found == expected


def test_the_manifests_name_every_shard_and_trainval_adds_no_bytes(make_shards: MakeShards, tmp_path: Path) -> None:
    manifests = make_shards(samples_per_shard=5)
    names = {split: [shard.name for shard in manifest.shards] for split, manifest in manifests.items()}
    train, val = ["train-000000.tar", "train-000001.tar", "train-000002.tar"], ["val-000000.tar", "val-000001.tar"]
    assert names["train"] == train
    assert names["trainval"] == [*(f"../train/{name}" for name in train), *(f"../val/{name}" for name in val)]
    assert [shard.num_samples for shard in manifests["trainval"].shards] == [5, 5, 2, 5, 1]
    assert os.listdir(tmp_path / "shards/vtab-tiny/trainval") == ["manifest.json"]
    for manifest in manifests.values():
        assert load_manifest(manifest.uri) == manifest
        assert manifest.sha256 == hashlib.sha256(Path(manifest.uri).read_bytes()).hexdigest()
        assert not faults_of(manifest)


def test_equal_sources_give_equal_bytes_wherever_they_lie(make_shards: MakeShards, tmp_path: Path, task: Task) -> None:
    make_shards()
    os.rename(tmp_path / "raw", tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("*.png"):
        os.utime(path, (1, 1))
    prepare_task(task, str(tmp_path / "moved"), str(tmp_path / "again"), samples_per_shard=4)
    assert contents(tmp_path / "again") == contents(tmp_path / "shards")


def test_an_unchanged_source_is_not_written_again(make_shards: MakeShards, tmp_path: Path, task: Task) -> None:
    manifests = make_shards()
    before = inodes(tmp_path / "shards")
    again = prepare_task(task, str(tmp_path / "raw"), str(tmp_path / "shards"), samples_per_shard=4)
    assert again == manifests
    assert inodes(tmp_path / "shards") == before


def change_label(folder: Path) -> None:
    lines = (folder / "train800.txt").read_text().splitlines(keepends=True)
    (folder / "train800.txt").write_text("images/train0.png 2\n" + "".join(lines[1:]))
    lines = (folder / "train800val200.txt").read_text().splitlines(keepends=True)
    (folder / "train800val200.txt").write_text("images/train0.png 2\n" + "".join(lines[1:]))


def change_image(folder: Path) -> None:
    # The size stays the same: only the date differs.
    data = (folder / "images/train0.png").read_bytes()
    (folder / "images/train0.png").write_bytes(data[:-1] + b"\0")


def change_names(folder: Path) -> None:
    (folder / "classnames.txt").write_text("cat\ndog\nnewt\n")


@pytest.mark.parametrize("change", [change_label, change_image, change_names])
def test_a_changed_source_is_written_again(
    change: Callable[[Path], None], make_shards: MakeShards, tmp_path: Path, task: Task
) -> None:
    before = make_shards()
    change(tmp_path / "raw/tiny")
    after = prepare_task(task, str(tmp_path / "raw"), str(tmp_path / "shards"), samples_per_shard=4)
    assert after["train"].sha256 != before["train"].sha256
    assert after["trainval"].sha256 != before["trainval"].sha256
    fresh = prepare_task(task, str(tmp_path / "raw"), str(tmp_path / "fresh"), samples_per_shard=4)
    assert {split: m.sha256 for split, m in after.items()} == {split: m.sha256 for split, m in fresh.items()}
    for manifest in after.values():
        assert not faults_of(manifest)


def test_a_shorter_source_leaves_no_shard_behind(make_shards: MakeShards, tmp_path: Path, task: Task) -> None:
    make_shards(test=9)
    (tmp_path / "raw/tiny/test.txt").write_text("images/test0.png 0\n")
    prepare_task(task, str(tmp_path / "raw"), str(tmp_path / "shards"), samples_per_shard=4)
    assert [path.name for path in (tmp_path / "shards/vtab-tiny/test").glob("*.tar")] == ["test-000000.tar"]


@pytest.mark.parametrize("damage", ["missing", "cut", "no manifest", "manifest of something else"])
def test_shards_that_are_not_whole_are_written_again(
    damage: str, make_shards: MakeShards, tmp_path: Path, task: Task
) -> None:
    before = make_shards()
    path = tmp_path / "shards/vtab-tiny/train/train-000001.tar"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1024])
    elif damage == "no manifest":
        Path(before["train"].uri).unlink()
    else:
        Path(before["train"].uri).write_text("[]")
    after = prepare_task(task, str(tmp_path / "raw"), str(tmp_path / "shards"), samples_per_shard=4)
    assert after == before
    assert not faults_of(after["trainval"])


def test_a_write_that_fails_leaves_no_manifest(
    make_shards: MakeShards, tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between data and manifest leaves no split behind, even if an older one existed."""
    make_shards()
    change_label(tmp_path / "raw/tiny")

    def killed(uri: str, data: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_task(task, str(tmp_path / "raw"), str(tmp_path / "shards"), samples_per_shard=4)
    for split in ("train", "trainval"):
        with pytest.raises(DataError, match="never written, or not to its end"):
            load_manifest(str(tmp_path / "shards/vtab-tiny" / split / "manifest.json"))
    after = prepare_task(task, str(tmp_path / "raw"), str(tmp_path / "shards"), samples_per_shard=4)
    assert not faults_of(after["trainval"])


def test_the_extension_is_the_real_format(make_lists: MakeLists, tmp_path: Path, task: Task) -> None:
    raw = make_lists(test=3)
    for i, kind in enumerate(("JPEG", "WEBP", "PNG")):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(raw / f"tiny/images/test{i}.png", kind)
    manifest = prepare_task(task, str(raw), str(tmp_path / "shards"))["test"]
    with tarfile.open(tmp_path / "shards/vtab-tiny/test" / manifest.shards[0].name) as tar:
        names = [name.rpartition(".")[2] for name in tar.getnames() if not name.endswith(".cls")]
    assert names == ["jpg", "webp", "png"]


def test_files_that_are_no_images_are_all_named(make_lists: MakeLists, tmp_path: Path, task: Task) -> None:
    raw = make_lists()
    (raw / "tiny/images/train3.png").write_text("not an image")
    (raw / "tiny/images/test3.png").write_bytes(b"")
    (raw / "tiny/images/test5.png").write_bytes(b"BM123456")
    with pytest.raises(DataError) as error:
        prepare_task(task, str(raw), str(tmp_path / "shards"))
    assert [Path(fault.split(":")[0]).name for fault in error.value.faults] == ["train3.png", "test3.png", "test5.png"]
    assert not list((tmp_path / "shards").rglob("trainval"))


def test_how_val_was_made_is_recorded(make_lists: MakeLists, tmp_path: Path, task: Task) -> None:
    raw = make_lists(train=30)
    (raw / "tiny/val200.txt").unlink()
    manifests = prepare_task(task, str(raw), str(tmp_path / "shards"), seed=5)
    for split in ("train", "val", "trainval"):
        assert manifests[split].source["val_origin"] == "a stratified tenth of train, seed 5"
    assert open_source(str(tmp_path / "shards"), task).val_origin == "a stratified tenth of train, seed 5"


def test_a_root_of_shards_is_used_as_it_is(make_shards: MakeShards, tmp_path: Path, task: Task) -> None:
    manifests = make_shards()
    assert prepare_task(task, str(tmp_path / "shards"), str(tmp_path / "elsewhere")) == manifests
    assert not (tmp_path / "elsewhere").exists()


def break_image(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def test_shards_that_lack_images_are_kept_when_fewer_are_allowed_later(
    make_lists: MakeLists, tmp_path: Path, task: Task
) -> None:
    raw, shards = make_lists(), str(tmp_path / "shards")
    break_image(raw / "tiny/images/train3.png")
    break_image(raw / "tiny/images/test3.png")
    manifests = prepare_task(task, str(raw), shards, max_skipped=2)
    assert manifests["trainval"].source["skipped"] == ["train-000003-images-train3"]
    for allowed in (0, 1):
        with pytest.raises(DataError, match=r"lack 2 images that could not be decoded.*--max-skipped 2`"):
            prepare_task(task, str(raw), shards, max_skipped=allowed)
    assert prepare_task(task, str(raw), shards, max_skipped=2) == manifests
    for manifest in manifests.values():
        assert not faults_of(manifest)


def test_a_limit_counts_what_was_left_out_before(make_lists: MakeLists, tmp_path: Path, task: Task) -> None:
    raw, shards = make_lists(), str(tmp_path / "shards")
    break_image(raw / "tiny/images/train3.png")
    prepare_task(task, str(raw), shards, max_skipped=1)
    break_image(raw / "tiny/images/test3.png")
    with pytest.raises(DataError, match=r"an image in .* cannot be written to shards \(1 may be.*--max-skipped 2`"):
        prepare_task(task, str(raw), shards, max_skipped=1)
    assert prepare_task(task, str(raw), shards, max_skipped=2)["test"].source["skipped"] == ["test-000003-images-test3"]


def test_a_split_of_which_nothing_is_left_is_an_error_however_many_may_be_left_out(
    make_lists: MakeLists, tmp_path: Path, task: Task
) -> None:
    raw = make_lists(val=2)
    for i in range(2):
        break_image(raw / f"tiny/images/val{i}.png")
    with pytest.raises(DataError, match=r"no image of val in .* could be used") as error:
        prepare_task(task, str(raw), str(tmp_path / "shards"), max_skipped=99)
    assert len(error.value.faults) == 2
    assert not list((tmp_path / "shards").rglob("manifest.json"))


def test_a_store_that_does_not_answer_is_no_reason_to_write_again(
    make_shards: MakeShards, tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shards()
    before = inodes(tmp_path / "shards")
    real = files.read_bytes

    def once(uri: str) -> bytes:
        if uri.endswith("manifest.json"):
            monkeypatch.setattr(files, "read_bytes", real)
            raise files.StorageError(f"{uri}: 503")
        return real(uri)

    monkeypatch.setattr(files, "read_bytes", once)
    with pytest.raises(files.StorageError, match="503"):
        prepare_task(task, str(tmp_path / "raw"), str(tmp_path / "shards"), samples_per_shard=4)
    assert inodes(tmp_path / "shards") == before


def test_shards_stay_as_they_were_cut(make_shards: MakeShards, tmp_path: Path, task: Task) -> None:
    manifests = make_shards(samples_per_shard=4)
    assert prepare_task(task, str(tmp_path / "raw"), str(tmp_path / "shards")) == manifests


def test_raw_tars_are_never_written_over(make_shards: MakeShards, tmp_path: Path, task: Task) -> None:
    make_shards()
    folder = tmp_path / "data/vtab-tiny"
    for split in ("train", "val", "test"):
        (folder / split).mkdir(parents=True)
        tars = sorted((tmp_path / "shards/vtab-tiny" / split).glob("*.tar"))
        for number, tar in enumerate(tars):
            shutil.copy(tar, folder / split / f"{number}.tar")
        (folder / split / "nshards.txt").write_text(str(len(tars)))
    (folder / "classnames.txt").write_text("a\nb\nc\n")
    before = inodes(folder)
    os.symlink(tmp_path / "data", tmp_path / "link")
    for target in (tmp_path / "data", tmp_path / "link"):
        with pytest.raises(DataError, match="where its shards would be written"):
            prepare_task(task, str(tmp_path / "data"), str(target))
    assert inodes(folder) == before


def test_of_discarded_shards_nothing_is_believed(
    make_lists: MakeLists, tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed write left its records, and a tar was damaged since. Its size is the same, so nobody notices."""
    raw, shards = make_lists(), str(tmp_path / "shards")
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "write_manifest", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            prepare_task(task, str(raw), shards)
    path = tmp_path / "shards/vtab-tiny/train/train-000000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    discard_task(shards, task.name)
    assert not faults_of(prepare_task(task, str(raw), shards)["train"])


def test_a_record_of_a_tar_that_was_written_over_is_not_believed(
    make_lists: MakeLists, tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, shards = make_lists(train=1), str(tmp_path / "shards")
    image = raw / "tiny/images/train0.png"
    first, date = image.read_bytes(), image.stat().st_mtime_ns
    real = files.write_bytes

    def run_until(end: str) -> dict[str, Manifest]:
        def write(uri: str, data: bytes) -> None:
            if end and uri.endswith(end):
                raise KeyboardInterrupt
            real(uri, data)

        monkeypatch.setattr(files, "write_bytes", write)
        return prepare_task(task, str(raw), shards, threads=1)

    with pytest.raises(KeyboardInterrupt):
        run_until("val-000000.tar")
    image.write_bytes(image_bytes((9, 9, 9)))
    with pytest.raises(KeyboardInterrupt):
        run_until("train-000000.tar.json")
    image.write_bytes(first)
    os.utime(image, ns=(date, date))
    assert not faults_of(run_until("")["train"])
