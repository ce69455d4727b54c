"""hst-registry as people run it: what it prints, its exit status, and how fast it answers."""

import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hst.checkpoint import save_checkpoint
from pipeline.registry.cli import _facts, _measures, main
from pipeline.registry.versions import RegisteredVersion, register
from pipeline.tracking.mlflow_client import experiment_id, open_client
from tests.hst.small_models import CLASSIFICATION

IDENTITY = "ab" * 32


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry with three versions of vtab-dtd (champion 2) and a champion-less vtab-svhn, whose run is gone."""
    root = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{root}/mlflow.db"
    client = open_client(uri)
    experiment = experiment_id(client, "cli-test")
    whole, gone = (client.create_run(experiment).info.run_id for _ in range(2))
    subset = client.create_run(experiment, tags={"subset": "10 of 47 classes"}).info.run_id
    results: list[tuple[str, dict[str, float], int, str]] = [
        ("vtab-dtd", {"val/top1": 0.5, "test/top1": 0.4321}, 112, whole),
        ("vtab-dtd", {"val/top1": 0.625, "test/top1": 0.6}, 112, subset),
        ("vtab-dtd", {"val/top1": 0.9}, 224, subset),
        ("vtab-svhn", {"test/top1": 0.1}, 112, gone),
    ]
    for number, (task, metrics, image_size, run_id) in enumerate(results):
        path = root / f"{number}.safetensors"
        save_checkpoint(
            path,
            {"weight": torch.full((2000,), float(number))},
            task=task,
            class_names=["a", "b"],
            method={"name": "hst"},
            **CLASSIFICATION,
            head={"kind": "classification", "input": "side", "num_classes": 2},
            preprocessing={"image_size": image_size},
            backbone={"name": "vit_tiny\x1b[31m_patch16_224", "identity": IDENTITY},
            metrics=metrics,
            code_version="0.1.0",
            provenance={
                "seed": 0,
                "protocol": "selection+final",
                "data_manifest_sha256": {"train": "1" * 64, "test": "2" * 64},
            },
        )
        register(uri, path, run_id=run_id)
    with sqlite3.connect(root / "mlflow.db") as database:  # as `mlflow gc` leaves it
        database.execute("DELETE FROM runs WHERE run_uuid = ?", [gone])
    return uri


@pytest.fixture(autouse=True)
def environment(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)


def run(capsys: Any, *arguments: str) -> tuple[int, list[str], list[str]]:
    """Exit status, lines of stdout, lines of stderr."""
    status = main(arguments)
    out, err = capsys.readouterr()
    return status, out.splitlines(), err.splitlines()


def test_no_command_repeats_a_login(capsys: Any, unused_port: int) -> None:
    uri = f"http://someone:hunter22@127.0.0.1:{unused_port}"
    for command in (["list"], ["show", "dtd"], ["promote", "dtd", "1"], ["pull", "dtd"], ["verify", "dtd"]):
        status, lines, errors = run(capsys, "--tracking-uri", uri, *command)
        assert (status, lines) == (1, [])
        (error,) = errors
        assert f"no registry at http://***@127.0.0.1:{unused_port}; set --tracking-uri" in error
    signed = "https://someone:hunter22@127.0.0.1/x?sig=hunter22"
    for target in (signed, "s3://KEY:hunter22@bucket/x"):
        status, lines, errors = run(capsys, "verify", target)
        assert (status, lines) == (1, [])
        assert "hunter22" not in "".join(errors)


def test_an_error_of_mlflow_is_told_without_a_login(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    def refuse(*arguments: Any, **options: Any) -> None:
        raise MlflowException("API request to http://someone:hunter22@host/api failed")

    monkeypatch.setattr("pipeline.registry.versions.open_client", refuse)
    status, lines, errors = run(capsys, "list")
    assert (status, lines) == (1, [])
    assert errors == ["hst-registry: API request to http://***@host/api failed"]


def test_list_prints_one_aligned_line_a_task(capsys: Any) -> None:
    status, lines, errors = run(capsys, "list")
    assert (status, errors) == (0, [])
    assert lines[0].split() == ["TASK", "CHAMPION", "VERSIONS", "VAL", "TEST", "BACKBONE", "SIZE", "AGE"]
    assert lines[1].startswith("vtab-dtd   version 2         3  62.5 %  60.0 %  vit_tiny\\x1b[31m_patch16_224")
    assert lines[2].split() == ["vtab-svhn", "none", "1"]
    assert len(lines) == 3


def test_show_says_of_every_version_why(capsys: Any) -> None:
    status, lines, _ = run(capsys, "show", "vtab-dtd")
    assert status == 0
    assert "not comparable with version 2: other image size" in lines[1]
    assert lines[2].startswith("*        2  62.5 %")
    assert "val 62.50% is better than 50.00% of version 1" in lines[2]
    assert lines[3].endswith("first with a val result")
    assert any(line.startswith("champion: version 2") for line in lines)
    assert any(line.split() == ["backbone", "identity", IDENTITY] for line in lines)


@pytest.mark.parametrize(("tag", "shown"), [("val_top1", "60.0 %"), ("bytes", "62.5 %"), ("test_top1", "62.5 %")])
def test_a_tag_that_cannot_be_read_is_named_and_hides_nothing_else(uri: str, capsys: Any, tag: str, shown: str) -> None:
    client = open_client(uri)
    whole = client.get_model_version("vtab-dtd", "2").tags[tag]
    client.set_model_version_tag("vtab-dtd", "2", tag, "abc")
    try:
        found = [run(capsys, *arguments) for arguments in (["list"], ["show", "vtab-dtd"])]
    finally:
        client.set_model_version_tag("vtab-dtd", "2", tag, whole)
    for status, lines, errors in found:
        assert (status, errors) == (0, [])
        (line,) = [line for line in lines if "?" in line.split()[1:]]
        assert shown in line, "all else is shown"
        (told,) = [line for line in lines if line.startswith("? ")]
        assert told.startswith(f"? vtab-dtd version 2: its tag {tag} is 'abc', expected a ")


def test_a_version_by_another_measure_shows_its_unit_and_its_name() -> None:
    tags = {"metric": "mae", "metric_unit": "px", "higher_is_better": "false", "val_mae": "0.213", "test_mae": "0.25"}
    found = RegisteredVersion(
        name="acme-ages",
        task="acme-ages",
        version=4,
        sha256="0" * 64,
        aliases=[],
        reason="",
        run_id="",
        tags=tags,
        created_ms=0,
    )
    assert _facts(found)[:2] == ["0.213 px", "0.25 px"]
    assert _measures([found]) == {"mae in px; lower is better": [4]}


def test_a_benchmark_task_is_known_by_its_short_name(capsys: Any, tmp_path: Path) -> None:
    short, full = (run(capsys, "show", name)[1] for name in ("dtd", "vtab-dtd"))
    aged = re.compile(r" +\d+ s ")  # it is a second later
    assert [aged.sub(" ", line) for line in short] == [aged.sub(" ", line) for line in full]
    assert run(capsys, "pull", "dtd")[1][0].startswith("vtab-dtd.safetensors  ")
    assert [path.name for path in tmp_path.iterdir()] == ["vtab-dtd.safetensors"]
    assert run(capsys, "verify", "dtd")[1][0].startswith("vtab-dtd: version 2 (champion) is sound")
    assert run(capsys, "promote", "dtd", "2")[1][0].startswith("vtab-dtd: version 2 is now champion")


def test_knowing_the_catalogue_s_names_takes_no_heavy_library() -> None:
    program = (
        "import sys\nfrom pipeline.registry.cli import build_parser\n"
        "print(build_parser().parse_args(['show', 'cifar']).task, *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    name, *modules = done.stdout.split()
    assert name == "vtab-cifar100"
    assert not {"torch", "ray", "mlflow", "boto3"} & set(modules)


def test_show_names_the_data_by_split_and_what_was_trained_on_a_subset(capsys: Any) -> None:
    lines = run(capsys, "show", "vtab-dtd")[1]
    assert "versions 3, 2: on a subset of the task's full data: 10 of 47 classes" in lines
    assert [line.split() for line in lines if "data of" in line] == [
        ["data", "of", "test", "2" * 64],
        ["data", "of", "train", "1" * 64],
    ]
    assert max(map(len, lines[5:])) < 120


def test_show_without_a_champion_says_how_to_make_one(capsys: Any) -> None:
    assert "hst-registry promote vtab-svhn VERSION" in run(capsys, "show", "vtab-svhn")[1][-1]


def test_pull_writes_the_checkpoint_that_verify_accepts(capsys: Any, tmp_path: Path) -> None:
    status, lines, _ = run(capsys, "pull", "vtab-dtd", "--dest", "here")
    assert status == 0
    assert lines[0].startswith("here/vtab-dtd.safetensors  ")
    assert IDENTITY in lines[1]
    status, lines, _ = run(capsys, "verify", "here/vtab-dtd.safetensors")
    assert status == 0
    assert "sound, a checkpoint of vtab-dtd" in lines[0]
    assert lines[1] == "registry: is version 2 of vtab-dtd"
    assert run(capsys, "pull", "vtab-dtd", "--version", "1")[0] == 0
    assert run(capsys, "verify", "vtab-dtd.safetensors")[1][1] == "registry: is version 1 of vtab-dtd"


def test_verify_refuses_a_flipped_byte_with_and_without_a_registry(capsys: Any, tmp_path: Path, uri: str) -> None:
    run(capsys, "pull", "vtab-dtd")
    path = tmp_path / "vtab-dtd.safetensors"
    sound = path.read_bytes()
    for position in (3, 200, len(sound) - 1):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 4]) + sound[position + 1 :])
        for registry_uri in (uri, "http://127.0.0.1:9"):
            status, _, errors = run(capsys, "verify", "vtab-dtd.safetensors", "--tracking-uri", registry_uri)
            assert (status, len(errors)) == (1, 1)
            assert errors[0].startswith("hst-registry: vtab-dtd.safetensors: ")


def test_pull_and_verify_take_s3(capsys: Any, s3_folder: Path, tmp_path: Path) -> None:
    run(capsys, "pull", "vtab-dtd", "--dest", "here")
    before = set(tmp_path.iterdir())
    status, lines, errors = run(capsys, "pull", "vtab-dtd", "--dest", "s3://bucket/released/")
    assert (status, errors) == (0, [])
    place = "s3://bucket/released/vtab-dtd.safetensors"
    assert lines[0].startswith(f"{place}  ")
    assert lines[0].endswith(" kB, verified")
    assert IDENTITY in lines[1]
    assert set(tmp_path.iterdir()) == before, "something was written beside the bucket"
    there = s3_folder / "bucket/released/vtab-dtd.safetensors"
    assert there.read_bytes() == (tmp_path / "here/vtab-dtd.safetensors").read_bytes()
    status, lines, _ = run(capsys, "verify", place)
    assert status == 0
    assert lines[0].startswith(f"{place}: sound, a checkpoint of vtab-dtd, sha256 ")
    assert lines[1] == "registry: is version 2 of vtab-dtd"
    there.write_bytes(there.read_bytes()[:-1] + b"\xff")
    status, lines, errors = run(capsys, "verify", place)
    assert (status, lines, len(errors)) == (1, [], 1)
    assert errors[0].startswith(f"hst-registry: {place}: damaged: sha256 of the tensor bytes should be")


@pytest.mark.parametrize(
    ("variables", "dest", "message"),
    [
        ({}, "s3://none/x", "no bucket s3://none/x/vtab-dtd.safetensors"),
        ({}, "s3://no bucket/x", "Invalid bucket name"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "s3://bucket/x", "403 (SignatureDoesNotMatch); are the credentials right"),
        (
            {"AWS_SECRET_ACCESS_KEY": "", "AWS_ACCESS_KEY_ID": ""},
            "s3://bucket/x",
            "no credentials; set AWS_ACCESS_KEY_ID",
        ),
        ({}, "https://host/x", "http files can be read, but not written or listed"),
        ({}, "gs://bucket/x", "expected a local path, file:///path or s3://bucket/prefix"),
    ],
)
def test_a_store_that_does_not_take_it_is_one_line_and_a_status(
    capsys: Any,
    s3_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    dest: str,
    message: str,
) -> None:
    for name, value in (variables | {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    before = set(tmp_path.rglob("*"))
    status, lines, errors = run(capsys, "pull", "vtab-dtd", "--dest", dest)
    assert (status, lines, len(errors)) == (1, [], 1)
    assert errors[0].startswith("hst-registry: ")
    assert message in errors[0]
    assert set(tmp_path.rglob("*")) == before


def test_verify_offline_says_that_it_was_offline(capsys: Any) -> None:
    run(capsys, "pull", "vtab-dtd")
    status, lines, _ = run(capsys, "verify", "vtab-dtd.safetensors", "--tracking-uri", "http://127.0.0.1:9")
    assert status == 0
    assert "cannot be reached" in lines[1]


def test_verify_of_a_task_checks_the_champion(capsys: Any) -> None:
    status, lines, _ = run(capsys, "verify", "vtab-dtd")
    assert status == 0
    assert lines[0].startswith("vtab-dtd: version 2 (champion) is sound")


def test_promote_moves_the_champion(capsys: Any) -> None:
    assert run(capsys, "promote", "vtab-dtd", "1")[1] == [
        f"vtab-dtd: version 1 is now champion and champion-{IDENTITY[:12]}"
    ]
    assert run(capsys, "promote", "vtab-dtd", "2")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pull", "vtab-none"], "vtab-none: no such task in the registry"),
        (["pull", "../etc/passwd"], "expected a name that matches"),
        (["pull", "vtab-dtd", "--version", "9"], "no version 9; there are: 1, 2, 3"),
        (["pull", "vtab-svhn"], "no version is champion"),
        (["pull", "vtab-dtd", "--with-backbone"], "holds no backbone of identity"),
        (["promote", "vtab-dtd", "9"], "no version 9"),
        (["show", "vtab-none"], "no such task"),
        (["verify", "no/such/file"], "cannot be opened: No such file"),
        (["verify", "."], "Is a directory"),
        (["verify", "vtab-none"], "no such task"),
        (["show", "vtab-dtdd"], "did you mean vtab-dtd?"),
        (["show", "dtd", "--registry-prefix", "anna-"], "anna-vtab-dtd: no such task"),
        (["list", "--tracking-uri", "http://127.0.0.1:9"], "no registry at http://127.0.0.1:9"),
        (["list", "--tracking-uri", "sqlite:////none/such.db"], "no registry at sqlite:////none/such.db"),
        (["list", "--tracking-uri", "somewhere"], "expected http"),
    ],
)
def test_a_fault_is_one_line_and_a_status(capsys: Any, arguments: list[str], message: str, tmp_path: Path) -> None:
    status, lines, errors = run(capsys, *arguments)
    assert (status, lines, len(errors)) == (1, [], 1)
    assert errors[0].startswith("hst-registry: ")
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_an_empty_list_says_so(capsys: Any) -> None:
    assert run(capsys, "list", "--registry-prefix", "anna-")[1][0].endswith("under the prefix anna-")


def test_options_go_before_and_after_the_command(capsys: Any, uri: str) -> None:
    elsewhere = ["--tracking-uri", "http://127.0.0.1:9"]
    assert run(capsys, *elsewhere, "list")[0] == 1
    assert run(capsys, "list", *elsewhere)[0] == 1
    assert run(capsys, *elsewhere, "list", "--tracking-uri", uri)[0] == 0


def _seconds(*arguments: str) -> float:
    """The quickest of a few runs: the others met something else on the machine."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - begin)
    return min(times)


def test_help_answers_within_eight_times_argparse() -> None:
    assert _seconds("-m", "pipeline.registry.cli", "--help") <= 8 * _seconds("-c", "import argparse")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom pipeline.registry.cli import build_parser\nbuild_parser().format_help()\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert not {"torch", "ray", "mlflow", "boto3", "numpy", "hst"} & set(done.stdout.split())
