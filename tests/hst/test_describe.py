"""``python -m hst describe``: exact counts, measured GFLOPs, one line for each mistake, nothing but torch and timm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch

from hst.__main__ import main
from hst.backbone import load_backbone
from hst.config import HSN_PRESETS, HSNConfig
from hst.describe import describe
from hst.model import build_classifier

ROOT = Path(__file__).resolve().parents[2]


def test_the_printed_table_of_hsn_b_on_vit_b(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "vit_base_patch16_224", "--hsn", "HSN_B", "--num-classes", "100"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "LayerNorms of the ViT's blocks 36864",
        "Meta-Register 9216",
        "T-Bridge 166104",
        "norms of the bridged registers 1296",
        "conv stem 5120",
        "downsamples 83496",
        "side blocks 462312",
        "norms of the stages 432",
        "total without head 764840",
        "head, 100 classes 7300",
        "total with head 772140",
        "frozen ViT, without its classifier 85798656",
        "trained without head, share of the ViT 0.891 %",
        "trained with head, share of the ViT 0.900 %",
        "forward at 224 px, ViT alone 35.13 GFLOP/image",
        "forward at 224 px, with HST 35.90 GFLOP/image",
        "light checkpoint, float32 3.09 MB",
    ):
        assert line in lines


@pytest.mark.parametrize(
    ("vit", "preset", "total"),
    [
        ("vit_base_patch16_224", "HSN_S", 270_228),
        ("vit_large_patch16_224", "HSN_L", 19_136_320),
    ],
)
def test_totals_are_those_of_the_released_code(vit: str, preset: str, total: int) -> None:
    assert describe(vit, HSN_PRESETS[preset], num_classes=10, image_size=32).without_head == total


def test_gflops_of_vit_b_are_those_counted_by_hand() -> None:
    """Per block 12 N D^2 + 2 N^2 D multiply-adds, and the patch embedding."""
    tokens, dim = 197, 768
    multiply_adds = 12 * (12 * tokens * dim**2 + 2 * tokens**2 * dim) + 196 * dim * 3 * 16**2
    cost = describe("vit_base_patch16_224", HSNConfig(), num_classes=100)
    assert cost.vit_gflops == pytest.approx(2 * multiply_adds / 1e9, rel=1e-6)
    assert cost.vit_gflops < cost.gflops < 1.05 * cost.vit_gflops


def test_the_image_size_changes_gflops_and_nothing_else() -> None:
    small, large = (describe("vit_tiny_patch16_224", HSNConfig(), num_classes=5, image_size=s) for s in (112, 224))
    assert small.gflops < large.gflops / 3
    assert (small.parts, small.checkpoint_bytes) == (large.parts, large.checkpoint_bytes)


def test_registers_and_the_class_token_are_counted() -> None:
    plain, more = (
        describe("vit_tiny_patch16_224", HSNConfig(num_registers=n), num_classes=5, image_size=32, head_input=h)
        for n, h in ((1, "side"), (4, "side+cls"))
    )
    assert more.parts["Meta-Register"] == 4 * plain.parts["Meta-Register"] == 4 * 12 * 192
    assert more.parts["head"] == (72 + 192 + 1) * 5


def test_the_checkpoint_size_is_that_of_the_saved_tensors() -> None:
    model = build_classifier(load_backbone("hst_vit_micro_patch8_64", "random"), HSNConfig(), num_classes=7)
    saved = len(safetensors.torch.save(model.state_dict()))
    cost = describe("hst_vit_micro_patch8_64", HSNConfig(), num_classes=7, image_size=64)
    assert 0 < saved - cost.checkpoint_bytes < 150 * len(model.state_dict())  # the index of names
    assert cost.vit_parameters == sum(p.numel() for p in model.backbone.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("vit_base_patch17_224", "no such model; close: "),
        ("swin_tiny_patch4_window7_224", "a SwinTransformer is not supported"),
        ("vit_base_patch16_224.nowhere", "has no weights tagged 'nowhere'"),
        ("vit_tiny_patch16_224 --hsn HSN_X", "--hsn HSN_X: no such preset; expected one of HSN_S, HSN_B, HSN_L"),
        ("vit_tiny_patch16_224 --num-registers 65", "num_registers=65: expected an integer from 0 to 64"),
        ("vit_tiny_patch16_224 --num-classes 1", "num_classes=1"),
        ("vit_tiny_patch16_224 --head-input cls", "head_input='cls': expected one of side, side+cls"),
        ("vit_tiny_patch16_224 --image-size -1", "image_size=-1"),
        ("vit_tiny_patch16_224 --image-size 15", "smaller than one patch of 16"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("python -m hst describe: ")
    assert message in err
    assert err.count("\n") == 1


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_help_comes_without_torch() -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['hst', 'describe', '--help']\n"
        "runpy.run_module('hst', run_name='__main__')"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr
    for option in ("--hsn", "--num-classes", "--num-registers", "--head-input", "--image-size", "HSN_S, HSN_B, HSN_L"):
        assert option in result.stdout
