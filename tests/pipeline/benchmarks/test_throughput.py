"""The benchmark of steps: its counts are right, and its times exist."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from hst.model import TaskModel
from pipeline.benchmarks import throughput
from pipeline.benchmarks.methods import METHODS, Setting

BACKBONE = "vit_tiny_patch16_224"
HAS_PEFT = importlib.util.find_spec("peft") is not None


def setting(image_size: int = 32) -> Setting:
    return Setting(backbone=BACKBONE, image_size=image_size, num_classes=5, device=torch.device("cpu"))


@pytest.mark.timeout(300)
def test_all_methods_are_measured_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = [name for name in METHODS if name != "lora" or HAS_PEFT]
    output = tmp_path / "results/throughput.json"
    arguments = ["--backbone", BACKBONE, "--methods", ",".join(methods), "--batch-size", "2", "--image-size", "32"]
    assert throughput.main([*arguments, "--rounds", "1", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    rows = {row["method"]: row for row in report["rows"]}
    assert list(rows) == methods
    assert report["hardware"]
    assert report["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert all(row["step_images_per_second"] > 0 and row["forward_images_per_second"] > 0 for row in rows.values())
    assert rows["hst"]["step_of_hst"] == rows["hst"]["forward_of_hst"] == 1
    saved = {name: row["saved_bytes_per_image"] for name, row in rows.items()}
    assert saved["hst-memory"] < saved["hst-balanced"] < saved["hst"] < saved["hst-plain"]
    flops = {name: row["step_flops_per_image"] for name, row in rows.items()}
    assert flops["linear"] < flops["hst"] < flops["hst-balanced"] < flops["hst-memory"]
    assert rows["hst"]["parameters"] == rows["hst-plain"]["parameters"] < rows["full"]["parameters"]
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in methods)


def test_the_work_of_a_step_is_counted_by_hand() -> None:
    """A ViT's forward products take 24 D^2 + 4 N D per token and block; a linear probe runs no backward pass in it."""
    subject = throughput.Subject("linear", setting(), 2, "float32")
    with throughput._Flops() as counter:
        subject.step()
    dim, tokens, depth = 192, 1 + 4, 12
    blocks = depth * tokens * (24 * dim**2 + 4 * tokens * dim)
    patches = 4 * 2 * 16 * 16 * 3 * dim
    head = 2 * dim * 5 * 2  # forward, and its weight's gradient
    assert counter.total == 2 * (blocks + patches + head)


def test_the_frozen_vits_backward_pass_is_counted_whole() -> None:
    """A frozen block's linear layers cost as much backward as forward; its attention costs 2.5 times as much."""
    subject = throughput.Subject("hst", setting(), 2, "float32")
    model = subject.method.model
    assert isinstance(model, TaskModel)
    backbone = model.backbone
    images = torch.randn(2, 3, 32, 32)
    with throughput._Flops() as forward:
        out = backbone(
            images, taps=(), registers=lambda i: torch.zeros(1, 1, 192, requires_grad=True) if not i else None
        )
    del out
    dim, tokens = 192, 1 + 4
    registered = 24 * dim**2 + 4 * (tokens + 1) * dim
    plain = 24 * dim**2 + 4 * tokens * dim
    patches = 4 * 2 * 16 * 16 * 3 * dim
    assert forward.total == 2 * ((tokens + 1) * registered + 11 * tokens * plain + patches)
    norms = model.extractor.block_norms
    out = backbone(images, taps=(11,), norms=norms).tokens[11].sum()
    with throughput._Flops() as backward:
        out.backward()
    linears = 24 * dim**2 * tokens * 12
    attention = 10 * tokens**2 * dim * 12
    assert backward.total == 2 * (linears + attention)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "hst,magic"], "--methods magic: expected hst, "),
        (["--batch-size", "1"], "--batch-size 1: expected at least 2"),
        (["--rounds", "0"], "--rounds 0: expected at least 1"),
        (["--device", "cuda"], "--device cuda: there is none here"),
        (["--threads", "0"], "--threads 0: expected at least 1"),
        (["--backbone", "vit_tinny_patch16_224"], "no such model; close: vit_tiny_patch16_224"),
        (["--backbone", "hst_vit_micro_patch8_64"], "hst_vit_micro_patch8_64: expected one of timm's"),
        (["--image-size", "65"], "--image-size 65: expected a multiple of the ViT's patch, 16"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(SystemExit):
        throughput.main([*arguments, "--output", str(tmp_path / "x.json")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_a_result_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "measure", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").touch()
    for output, reason in ((tmp_path, "Is a directory"), (tmp_path / "file/x.json", "File exists")):
        with pytest.raises(SystemExit) as ended:
            throughput.main(["--output", str(output)])
        assert ended.value.code == 2
        assert f"--output {output}: cannot be written: {reason}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        throughput.main(["--rounds", "0", "--output", str(tmp_path / "new/x.json")])
    assert not (tmp_path / "new/x.json").exists()


def test_lora_without_its_package_says_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if HAS_PEFT:
        pytest.skip("peft is installed here")
    arguments = ["--backbone", BACKBONE, "--methods", "lora", "--output", str(tmp_path / "x.json")]
    assert throughput.main(arguments) == 2
    assert "pip install" in capsys.readouterr().err
