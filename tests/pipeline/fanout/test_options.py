"""Every fault of a command line is found before anything starts, and all are reported at once."""

import dataclasses
from pathlib import Path

import pytest

from pipeline.console.command_line import FaultyOptions
from pipeline.fanout.options import FanoutOptions, check, is_data_unused


@pytest.fixture
def data(tmp_path: Path) -> Path:
    from pipeline.data.demo import make_demo_data

    return make_demo_data(tmp_path / "data")[0].parent


def options(tmp_path: Path, **changes: object) -> FanoutOptions:
    given = {
        "tasks": ("demo-digits", "shape_x"),
        "data": str(tmp_path / "data"),
        "backbone": "hst_vit_micro_patch8_64",
        "backbone_weights": "random",
        "storage": str(tmp_path / "storage"),
        "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db",
    }
    return FanoutOptions(**(given | changes))  # type: ignore[arg-type]


def faults(given: FanoutOptions) -> list[str]:
    with pytest.raises(FaultyOptions) as caught:
        check(given)
    return caught.value.faults


def test_sound_options_give_resolved_jobs_and_a_backbone(tmp_path: Path, data: Path) -> None:
    _, jobs, backbone = check(options(tmp_path, settings=("epochs=2", "widths=8,8,16,16", "num_heads=1,1,2,2")))
    assert [job.task.name for job in jobs] == ["demo-digits", "demo-shape_x"]
    assert not is_data_unused(options(tmp_path), jobs)
    assert all(job.recipe.epochs == 2 and job.hsn.widths == (8, 8, 16, 16) for job in jobs)
    assert all(job.hsn.depths == (2, 2, 2, 2) for job in jobs)
    assert len(backbone.identity) == 64


def test_all_faults_are_told_together(tmp_path: Path, data: Path) -> None:
    text = tmp_path / "weights.safetensors"
    text.write_text("not weights")
    (data / "shape_x" / "val200.txt").write_text("images/none.png 99\n")
    found = "\n".join(
        faults(
            options(
                tmp_path,
                tasks=("digits", "shape_x", "vtab-dtdd"),
                settings=("epoch=3", "learning_rate=fast"),
                backbone_weights=str(text),
                num_workers=0,
                tracking_uri="ftp://nowhere",
            )
        )
    )
    for part in (
        "vtab-dtdd",
        "vtab-dtd",
        "'epoch=3'",
        "epochs",
        "learning_rate=fast",
        "val200.txt",
        str(text),
        "--num-workers 0",
    ):
        assert part in found, part
    assert "ftp://nowhere" in found
    assert not (tmp_path / "mlflow.db").exists()


def test_missing_data_names_the_places_looked_at(tmp_path: Path) -> None:
    (found,) = faults(options(tmp_path, tasks=("digits", "shape_x")))
    assert found.startswith(f"--data {tmp_path}/data: no such folder")
    (tmp_path / "data").mkdir()
    digits, _shape = faults(options(tmp_path, tasks=("digits", "shape_x")))
    assert f"{tmp_path}/data/digits: no such folder" in digits


def test_a_bucket_that_is_not_there_is_told_once(tmp_path: Path, s3_folder: Path) -> None:
    found = faults(options(tmp_path, data="s3://no-such-bucket/x", storage="s3://no-such-bucket/y"))
    assert found == ["--storage: no bucket s3://no-such-bucket", "--data: no bucket s3://no-such-bucket"]


def test_raw_folders_on_s3_are_told_that_they_cannot_be_read_there(tmp_path: Path, s3_folder: Path) -> None:
    (s3_folder / "bucket/digits").mkdir()
    (s3_folder / "bucket/digits/train800.txt").write_text("a.png 0\n")
    (found,) = faults(options(tmp_path, tasks=("digits",), data="s3://bucket"))
    assert "s3://bucket/digits: has none of train/nshards.txt" in found
    assert "; other layouts can only be read from a local folder" in found


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc, where nobody can write")
def test_a_storage_that_cannot_be_written_is_one_fault(tmp_path: Path, data: Path) -> None:
    (found,) = faults(options(tmp_path, storage="/proc/x"))
    assert found.startswith("--storage: /proc/x: nothing can be written in /proc (")


def test_a_refused_command_leaves_nothing_behind(tmp_path: Path) -> None:
    faults(options(tmp_path, tasks=("demo-digits",)))
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_vit_are_refused(tmp_path: Path, data: Path) -> None:
    import timm
    from safetensors.torch import save_file

    file = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), file)
    (found,) = faults(options(tmp_path, backbone_weights=str(file)))
    assert "of another ViT than 'hst_vit_micro_patch8_64'" in found


def test_an_unknown_backbone_suggests_names(tmp_path: Path, data: Path) -> None:
    (found,) = faults(options(tmp_path, backbone="vit_base_patch16_24"))
    assert "vit_base_patch16_224" in found


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "aimv2_large_patch14_224", "swin_tiny_patch4_window7_224"])
def test_a_vit_that_cannot_work_is_a_fault_before_its_weights_are_read(name: str, tmp_path: Path, data: Path) -> None:
    (found,) = faults(options(tmp_path, backbone=name, backbone_weights="s3://no-such-bucket/vit.pth"))
    assert found.startswith(f"--backbone: backbone '{name}': ")
    assert "not supported; HST runs beside" in found


def test_too_many_side_blocks_for_the_vit_are_a_fault(tmp_path: Path, data: Path) -> None:
    (found,) = faults(options(tmp_path, settings=("depths=3,3,3,3",)))
    assert "12 side blocks for a ViT of 8 blocks" in found


def test_an_image_size_that_cuts_pixels_off_is_a_fault_with_the_nearest_sizes(tmp_path: Path, data: Path) -> None:
    for size, nearest in ((70, "64 and 72"), (33, "32 and 40")):
        (found,) = faults(options(tmp_path, settings=(f"image_size={size}",)))
        assert found == f"image_size={size}: no multiple of the ViT's patch of 8 pixels; nearest: {nearest}"


def make_photos(folder: Path) -> None:
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            (folder / name / f"{i}.jpg").write_bytes(b"")


def test_a_task_file_alone_runs_exactly_its_tasks_without_a_data_root(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos")
    file = tmp_path / "own.toml"
    text = '[tasks.own-x]\ndata = "photos"\n'
    file.write_text(text + "[tasks.own-x.recipe]\nepochs = 3\n[tasks.own-x.hsn]\nnum_registers = 2\n")
    given = options(tmp_path, tasks=(), task_files=(str(file),), settings=("learning_rate=1e-2",))
    (job,) = jobs = check(given)[1]
    assert is_data_unused(given, jobs)
    assert not is_data_unused(dataclasses.replace(given, data=None), jobs)
    assert (job.task.name, job.data) == ("own-x", str(tmp_path / "photos"))
    assert (job.recipe.epochs, job.recipe.learning_rate, job.hsn.num_registers) == (3, 1e-2, 2)
    file.write_text(text + "[tasks.own-y]\n")
    (fault,) = faults(given)  # own-y does not name its own data
    assert fault.startswith(f"--data {tmp_path}/data: no such folder")


def test_a_file_with_mistakes_brings_no_fault_of_a_data_root_that_nobody_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HST_DATA", str(tmp_path / "none"))
    make_photos(tmp_path / "photos")
    file = tmp_path / "own.toml"
    file.write_text('[tasks.own-x]\ndata = "photos"\nclasses = 1\n')
    given = options(tmp_path, tasks=(), task_files=(str(file),), data=None)
    (fault,) = faults(given)
    assert "classes" in fault
    (fault,) = faults(dataclasses.replace(given, tasks=("own-x",), task_files=()))
    assert "no task is called 'own-x'" in fault
    file.write_text("[tasks.own-x]\n")
    (fault,) = faults(given)  # the task does not name its own data
    assert fault.startswith(f"--data {tmp_path}/none: no such folder")
    file.write_text('[tasks.own-x]\ndata = "fotos"\nclasses = 1\n')
    assert f"{file}:2: tasks.own-x.data: {tmp_path}/fotos: no such folder" in faults(given)


def test_faults_of_a_task_file_are_told_with_those_of_the_command_line(tmp_path: Path, data: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        '[tasks.own-x]\ndata = "none"\n[tasks.own-y]\nclasses = 1\n[tasks.own-z]\nfolder = "digits"\n'
        "[tasks.own-z.hsn]\ndepths = [3, 3, 3, 3]\n"
    )
    found = faults(options(tmp_path, tasks=("own", "dtdd", "own-x", "own-z"), task_files=(str(file),), num_workers=0))
    expected = (
        f"{file}:4: tasks.own-y.classes: expected a whole number of at least 2; found 1",
        "no task is called 'dtdd'",
        "--num-workers 0",
        f"{file}:1: data: own-x: no data found; looked at\n  - {tmp_path}/none: no such folder",
        f"{file}:5: own-z: depths=(3, 3, 3, 3): 12 side blocks for a ViT of 8 blocks",
    )
    assert len(found) == len(expected), found
    for fault, start in zip(found, expected, strict=True):
        assert fault.startswith(start), fault


def test_the_most_workers_of_a_range_must_have_images_of_every_batch(tmp_path: Path, data: Path) -> None:
    given = options(tmp_path, tasks=("demo-digits",), num_workers=(1, 9), settings=("batch_size=8",))
    found = faults(given)
    assert found
    assert all("a batch of 8 in 1 parts over 9 workers leaves one without an image" in fault for fault in found)
    assert faults(dataclasses.replace(given, num_workers=(9, 1)))[0].startswith(
        "--num-workers 9-1: expected the smaller"
    )
