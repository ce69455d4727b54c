"""The job that writes shards: its output, files and exit status, from raw images to verified shards."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.console.command_line import FaultyOptions
from pipeline.data.shards.manifest import Manifest, load_manifest
from pipeline.fanout import write_tasks

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.timeout(400)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def write_shards(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs/write_shards.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=ENVIRONMENT)


def photos(folder: Path, *, each: int = 10) -> Path:
    """Makes a folder of photos in two classes; returns the task file for them."""
    for red, name in ((40, "cat"), (200, "dog")):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (9, 7), (red, i, i)).save(folder / "photos" / name / f"{i}.png")
    path = folder / "photos.toml"
    path.write_text('[tasks.acme-photos]\ndata = "photos"\n')
    return path


def test_a_folder_of_photos_becomes_verified_shards_with_a_report(tmp_path: Path) -> None:
    file, to = photos(tmp_path), tmp_path / "shards"
    done = write_shards("--task-file", str(file), "--to", str(to))
    assert done.returncode == 0, done.stderr
    assert "acme-photos  photo-folders        2     14    2     4" in done.stdout
    assert f'in {file}, under [tasks.acme-photos], put\n    data = "{to}/acme-photos"\n' in done.stdout
    assert done.stdout.endswith(f"--task-file {file} --tasks acme-photos\n")
    assert "<h1>Data of acme-photos</h1>" in (to / "acme-photos/report/data-report.html").read_text()
    manifest = load_manifest(str(to / "acme-photos/trainval/manifest.json"))
    assert manifest.num_samples == 16

    verified = write_shards("--verify", "--to", str(to))
    assert verified.returncode == 0, verified.stderr
    assert "acme-photos: 20 images read, all whole" in verified.stdout

    tar = to / "acme-photos/test/test-000000.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    damaged = write_shards("--verify", "--to", str(to), "acme-photos", "--task-file", str(file))
    assert damaged.returncode == 1
    assert "test-000000.tar: sample 'photo-" in damaged.stdout
    assert "1 of 1 tasks failed: acme-photos" in damaged.stderr
    dropped = write_shards("--verify", "--to", str(to), "--max-skipped", "1")
    assert dropped.returncode == 0, dropped.stderr
    assert f"acme-photos: left out: {tar}: sample 'photo-" in dropped.stdout
    assert "acme-photos: 20 images read, 19 whole" in dropped.stdout
    assert load_manifest(str(to / "acme-photos/test/manifest.json")).num_samples == 3


def test_an_image_that_cannot_be_decoded_is_found_before_training_and_left_out_if_the_user_says_so(
    tmp_path: Path,
) -> None:
    file, to = photos(tmp_path), tmp_path / "shards"
    broken = tmp_path / "photos/cat/3.png"
    broken.write_bytes(broken.read_bytes()[:48])
    refused = write_shards("--task-file", str(file), "--to", str(to), "--no-report")
    assert refused.returncode == 1
    assert f"{broken}: not a readable image" in refused.stdout
    assert "leave it out by `jobs/write_shards.py --max-skipped 1`" in refused.stdout
    assert refused.stdout.count("acme-photos: ") == 1  # not again for the row and for the fault
    table = refused.stdout[refused.stdout.index("task  ") :]
    assert table.splitlines()[2].split()[:3] == ["acme-photos", "failed", "-"]
    assert not list(to.rglob("manifest.json"))
    written = write_shards("--task-file", str(file), "--to", str(to), "--no-report", "--max-skipped", "1")
    assert written.returncode == 0, written.stderr
    assert "left out, since they cannot be decoded: photo-000003-cat-3" in written.stdout
    manifest = load_manifest(str(to / "acme-photos/trainval/manifest.json"))
    counts = manifest.num_samples + load_manifest(str(to / "acme-photos/test/manifest.json")).num_samples
    assert counts == 19


def test_every_fault_of_a_command_line_is_told_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    arguments = ["dtdd", "--to", "gs://x/y", "--from", "pipe:cat", "--samples-per-shard", "0", "--max-skipped", "-1"]
    done = write_shards(*arguments)
    assert done.returncode == 2
    assert "nothing was started; 5 faults:" in done.stderr
    for part in (
        "did you mean dtd",
        "--to: address 'gs://x/y'",
        "--from: address",
        "--samples-per-shard 0",
        "--max-skipped -1",
    ):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    done = write_shards("dtd", "cifar", "--from", str(tmp_path), "--to", str(tmp_path / "shards"))
    assert done.returncode == 2
    assert done.stderr.count("no data found; looked at") == 2
    mistaken = tmp_path / "mistaken.toml"
    mistaken.write_text('[tasks.own-x]\nclasses = 1\n[tasks.own-y]\ndata = "none"\n')
    done = write_shards("--task-file", str(mistaken), "--to", str(tmp_path / "shards"))
    assert "nothing was started; 2 faults:" in done.stderr
    assert f"{tmp_path}/none: no such folder" in done.stderr  # also for a sound task beside a faulty one
    done = write_shards("--verify", "--to", str(tmp_path / "shards"))
    assert done.returncode == 2
    assert "no shards of any task there" in done.stderr
    assert not (tmp_path / "shards").exists()
    (tmp_path / "file").write_text("x")
    file = photos(tmp_path)
    done = write_shards("--task-file", str(file), "--to", str(tmp_path / "file"))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--to: {tmp_path}/file: {tmp_path}/file is no folder" in done.stderr


def test_a_write_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    file, to = photos(tmp_path, each=400), tmp_path / "shards"
    arguments = [
        "--task-file",
        str(file),
        "--to",
        str(to),
        "--samples-per-shard",
        "10",
        "--threads",
        "1",
        "--no-report",
    ]
    command = [sys.executable, str(ROOT / "jobs/write_shards.py"), *arguments]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    records = to / "acme-photos/train/parts"
    deadline = time.monotonic() + 60
    while not (records.is_dir() and len(list(records.glob("*.json"))) > 3):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(to.rglob("manifest.json"))
    before = {path.name: path.stat().st_mtime_ns for path in (to / "acme-photos/train").glob("*.tar")}
    recorded = {json.loads(path.read_bytes())["shard"]["name"] for path in records.glob("*.json")}
    assert write_shards(*arguments).returncode == 0
    after = {path.name: path.stat().st_mtime_ns for path in (to / "acme-photos/train").glob("*.tar")}
    assert all(after[name] == before[name] for name in recorded)
    assert not records.exists() or not list(records.iterdir())

    fresh = tmp_path / "fresh"
    assert write_shards(*arguments[:2], "--to", str(fresh), *arguments[4:]).returncode == 0
    assert manifest_of(to) == manifest_of(fresh)


def manifest_of(root: Path) -> str:
    return load_manifest(str(root / "acme-photos/trainval/manifest.json")).sha256


class Written:
    """Shards of the photos, written and verified with options per call, and the messages of the last call."""

    def __init__(self, folder: Path, *, report: bool) -> None:
        self.root = folder / "shards"
        self.told: list[str] = []
        self._given: dict[str, Any] = {"task_files": (str(photos(folder)),), "to": str(self.root), "report": report}
        self.write()

    def write(self, **changes: Any) -> dict[str, Any]:
        return self._call(write_tasks.write_tasks, changes)

    def verify(self, **changes: Any) -> dict[str, Any]:
        return self._call(write_tasks.verify_tasks, changes)

    def flip(self, *places: int) -> bytes:
        """Changes single bytes in the tar of test; returns its content before."""
        tar = self.root / "acme-photos/test/test-000000.tar"
        before = tar.read_bytes()
        data = bytearray(before)
        for place in places:
            data[place] ^= 1
        tar.write_bytes(data)
        return before

    def _call(self, function: Any, changes: dict[str, Any]) -> dict[str, Any]:
        self.told.clear()
        options = write_tasks.WriteOptions(**(self._given | changes))
        (row,) = function(options, say=self.told.append, progress=lambda name: lambda done, total: None)
        return dict(row)


def test_damage_that_verify_finds_is_mended_by_the_command_that_it_names(tmp_path: Path) -> None:
    shards = Written(tmp_path, report=False)
    before = shards.flip(600, 3000)
    error = shards.verify(max_skipped=1)["error"]
    assert "are damaged (2 faults, 1 may be left out)" in error
    assert f"write_shards.py acme-photos --task-file {tmp_path}/photos.toml --to {shards.root} --rewrite\n" in error
    assert error.endswith(f"write_shards.py acme-photos --verify --to {shards.root} --max-skipped 2")
    assert error.count("write_shards.py") == 2  # only at the end, not for each sample
    tar = shards.root / "acme-photos/test/test-000000.tar"
    assert shards.write()["error"] is None
    assert tar.read_bytes() != before  # not rewritten: sizes and dates of the source are unchanged
    assert shards.write(rewrite=True)["error"] is None
    assert tar.read_bytes() == before
    assert shards.verify()["error"] is None
    shards.flip(600, 3000)
    assert shards.verify(max_skipped=2)["left out"] == 2


def test_a_split_that_is_lost_as_a_whole_can_only_be_written_again(tmp_path: Path) -> None:
    shards = Written(tmp_path, report=False)
    (shards.root / "acme-photos/test/test-000000.tar").unlink()
    error = shards.verify(max_skipped=99, task_files=(), tasks=("acme-photos",))["error"]
    assert "nothing of test in" in error
    assert error.endswith(f"write_shards.py acme-photos --task-file FILE.toml --to {shards.root} --rewrite")


@pytest.mark.parametrize("made_again", [True, False])
def test_a_report_is_never_of_samples_that_were_left_out(made_again: bool, tmp_path: Path) -> None:
    shards = Written(tmp_path, report=True)
    numbers = shards.root / "acme-photos/report/data-report.json"
    shards.flip(600)
    assert shards.verify(max_skipped=1, report=made_again)["error"] is None
    if made_again:
        assert json.loads(numbers.read_text())["splits"]["test"]["images"] == 3
    else:
        assert not list(numbers.parent.iterdir())


def test_a_verification_makes_no_report_where_none_was_wanted(tmp_path: Path) -> None:
    shards = Written(tmp_path, report=False)
    shards.flip(600)
    assert shards.verify(max_skipped=1, report=True)["error"] is None
    assert not (shards.root / "acme-photos/report").exists()


def test_a_tar_whose_samples_are_all_whole_is_not_said_to_be_left_out(tmp_path: Path) -> None:
    shards = Written(tmp_path, report=False)
    shards.flip(-1)
    assert shards.verify(max_skipped=1)["left out"] == 0
    assert shards.told[0].startswith("acme-photos: the manifest now says so: ")
    assert shards.told[1] == "acme-photos: 20 images read, all whole"


def test_verification_compares_shards_with_the_raw_data_that_a_file_names(tmp_path: Path) -> None:
    shards = Written(tmp_path, report=False)
    assert shards.verify()["error"] is None
    assert shards.told[-1] == f"acme-photos: compared with {tmp_path}/photos: every image is the same"
    photo = tmp_path / "photos/cat/3.png"
    status = photo.stat()
    Image.new("RGB", (9, 7), (41, 3, 3)).save(photo)
    os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert photo.stat().st_size == status.st_size
    error = shards.verify()["error"]
    assert f"the shards are whole, but not of {tmp_path}/photos as it is now" in error
    assert "photo-000003-cat-3" in error
    assert error.endswith("--rewrite")
    assert shards.write(rewrite=True)["error"] is None
    assert shards.verify()["error"] is None
    (tmp_path / "photos").rename(tmp_path / "gone")
    assert shards.verify()["error"] is None
    assert shards.told[-1] == f"acme-photos: not compared with the raw data: no folder {tmp_path}/photos"


def test_a_verification_that_could_compare_nothing_of_a_task_is_a_fault(tmp_path: Path) -> None:
    shards = Written(tmp_path, report=False)
    with pytest.raises(FaultyOptions) as error:
        shards.verify(task_files=(), source=str(tmp_path))
    assert "where the raw data of acme-photos lies there, its task file says: add --task-file" in str(error.value)
    assert shards.verify(task_files=())["error"] is None, "without --from, the shards alone are read"


def test_a_task_file_that_cannot_say_where_the_raw_data_is_ends_a_verification(tmp_path: Path) -> None:
    shards = Written(tmp_path, report=False)
    (tmp_path / "photos.toml").write_text('[tasks.acme-photos]\ndata = "photos"\nclases = 2\n')
    for tasks in ((), ("acme-photos",)):
        with pytest.raises(FaultyOptions) as error:
            shards.verify(tasks=tasks)
        assert [fault for fault in error.value.faults if "clases" in fault] == error.value.faults[:1]


def test_what_is_left_aside_is_told_when_shards_are_written(tmp_path: Path) -> None:
    shards = Written(tmp_path, report=False)
    before = manifest_of(shards.root)
    (tmp_path / "photos/@eaDir").mkdir()
    (tmp_path / "photos/cat/.ipynb_checkpoints").mkdir()
    Image.new("RGB", (9, 7)).save(tmp_path / "photos/cat/.ipynb_checkpoints/3-checkpoint.png")
    shards.write()
    assert shards.told == [
        "acme-photos: left aside, as hidden, or a system's own: 2 (@eaDir/, cat/.ipynb_checkpoints/)"
    ]
    assert manifest_of(shards.root) == before


def test_shards_of_tasks_without_a_place_of_their_own_are_trained_on_by_data(tmp_path: Path) -> None:
    file = photos(tmp_path)
    options = write_tasks.WriteOptions(tasks=("own", "dtd"), task_files=(str(file),), to=f"{tmp_path}/my shards")
    rows: list[write_tasks.Row] = [
        {"task": "acme-photos", "place_stands_in": str(file)},
        {"task": "vtab-dtd", "place_stands_in": None},
    ]
    hint = write_tasks.how_to_train(rows, options)
    assert f'data = "{tmp_path}/my shards/acme-photos"' in hint
    assert hint.endswith(f"--tasks acme-photos,vtab-dtd --data '{tmp_path}/my shards'")
    assert write_tasks.how_to_train(rows[1:], options).startswith("train on them: python jobs/fanout_vtab.py")


def test_shards_are_no_raw_data(tmp_path: Path) -> None:
    file, to = photos(tmp_path), tmp_path / "shards"
    assert write_shards("--task-file", str(file), "--to", str(to), "--no-report").returncode == 0
    file.write_text(f'[tasks.acme-photos]\ndata = "{to}/acme-photos"\n')
    done = write_shards("--task-file", str(file), "--to", str(tmp_path / "again"))
    assert done.returncode == 2
    assert "acme-photos: these are shards already" in done.stderr
    done = write_shards("--task-file", str(file), "--to", str(to), "--rewrite")
    assert "--rewrite needs the raw data" in done.stderr
    assert (to / "acme-photos/train/manifest.json").exists()
    assert "keep one of them" in write_shards("--to", str(to), "--rewrite", "--verify").stderr


def test_the_tasks_that_are_written_are_found(tmp_path: Path) -> None:
    for name in ("a-b/train/manifest.json", "c-d/val/manifest.json", "e-f/train/x/manifest.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    assert write_tasks.written_tasks(str(tmp_path)) == ["a-b"]


@pytest.mark.parametrize("threads", [1, 4])
def test_any_number_of_threads_writes_the_same_bytes(threads: int, tmp_path: Path) -> None:
    from pipeline.data.prepare import prepare_task
    from pipeline.tasks.task_file import choose_tasks

    (task,), _ = choose_tasks((), (str(photos(tmp_path, each=40)),))
    written: list[Manifest] = []
    for root, count in (("one", 1), ("several", threads)):
        manifests = prepare_task(task, "", str(tmp_path / root), samples_per_shard=7, threads=count)
        written.append(manifests["trainval"])
    assert written[0].sha256 == written[1].sha256
