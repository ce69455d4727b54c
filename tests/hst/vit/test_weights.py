"""Every readable form of weights gives the same backbone; everything else gives one clear message."""

from __future__ import annotations

import os
import pickle
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from hst.backbone import backbone_identity, load_backbone
from hst.vit.weights import PROJECT_VITS, build_vit, shipped_weights
from tests.hst.small_models import small_vit

ROOT = Path(__file__).resolve().parents[3]
NAME = "hst_vit_micro_patch8_64"
MICRO: dict[str, Any] = {"img_size": 64, "embed_dim": 128, "depth": 8, "num_heads": 4, "mlp_ratio": 4}
WEIGHTS = Path(__file__).resolve().parents[4] / "shared" / "weights"
REAL = WEIGHTS / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.fp16.safetensors"


def micro(**kwargs: Any) -> VisionTransformer:
    return small_vit(**{**MICRO, **kwargs})


def same(name: str, path: Path, expected: dict[str, torch.Tensor]) -> None:
    backbone = load_backbone(name, path)
    state = backbone.vit.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert backbone.identity == backbone_identity(expected)
    assert all(value.dtype == torch.float32 for value in state.values())
    assert not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["safetensors", "plain.pth", "model.pth", "state_dict.pth"])
def test_safetensors_and_pth_of_any_precision_are_read(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: value.to(dtype) for name, value in micro(num_classes=10).state_dict().items()}
    path = tmp_path / f"vit.{form}"
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        key = form.removesuffix(".pth")
        torch.save(state if key == "plain" else {key: state, "epoch": 3}, path)
    same(NAME, path, {k: v.float() for k, v in state.items() if not k.startswith("head.")})


def test_the_classifier_does_not_change_the_identity(tmp_path: Path) -> None:
    state = micro(num_classes=10).state_dict()
    torch.save(state, tmp_path / "with.pth")
    torch.save({k: v for k, v in state.items() if not k.startswith("head.")}, tmp_path / "without.pth")
    with_head, without = (load_backbone(NAME, tmp_path / f"{name}.pth") for name in ("with", "without"))
    assert with_head.identity == without.identity
    state["blocks.3.norm1.bias"][5] += 1e-3
    torch.save(state, tmp_path / "changed.pth")
    assert load_backbone(NAME, tmp_path / "changed.pth").identity != without.identity


def test_a_mae_file_is_read(tmp_path: Path) -> None:
    """MAE's released checkpoints hold the encoder under ``model``, without a classifier."""
    state = micro().state_dict()
    torch.save({"model": state}, tmp_path / "mae_pretrain_vit.pth")
    same(NAME, tmp_path / "mae_pretrain_vit.pth", state)


def flax_arrays(vit: VisionTransformer, prefix: str = "") -> dict[str, np.ndarray]:
    """A ViT's weights as in the .npz files of google-research/vision_transformer: HWIO and (in, out) kernels, an axis
    for the heads."""
    state = {name: value.numpy() for name, value in vit.state_dict().items()}
    dim, heads = vit.embed_dim, vit.blocks[0].attn.num_heads
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": np.zeros((dim, 21843), np.float32),
        "head/bias": np.zeros(21843, np.float32),
    }
    for i in range(len(vit.blocks)):
        block, out = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        for norm, number in (("norm1", 0), ("norm2", 2)):
            arrays[f"{out}/LayerNorm_{number}/scale"] = state[f"{block}.{norm}.weight"]
            arrays[f"{out}/LayerNorm_{number}/bias"] = state[f"{block}.{norm}.bias"]
        attention = f"{out}/MultiHeadDotProductAttention_1"
        weights = state[f"{block}.attn.qkv.weight"].reshape(3, heads, dim // heads, dim)
        biases = state[f"{block}.attn.qkv.bias"].reshape(3, heads, dim // heads)
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            arrays[f"{attention}/{part}/kernel"] = weight.transpose(2, 0, 1)
            arrays[f"{attention}/{part}/bias"] = bias
        proj = state[f"{block}.attn.proj.weight"].T.reshape(heads, dim // heads, dim)
        arrays[f"{attention}/out/kernel"] = proj
        arrays[f"{attention}/out/bias"] = state[f"{block}.attn.proj.bias"]
        for number in (0, 1):
            dense = f"{out}/MlpBlock_3/Dense_{number}"
            arrays[f"{dense}/kernel"] = state[f"{block}.mlp.fc{number + 1}.weight"].T
            arrays[f"{dense}/bias"] = state[f"{block}.mlp.fc{number + 1}.bias"]
    return {prefix + name: array for name, array in arrays.items()}


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_a_jax_file_is_read(prefix: str, tmp_path: Path) -> None:
    vit = micro()
    np.savez(tmp_path / "vit.npz", **flax_arrays(vit, prefix))  # type: ignore[arg-type]
    same(NAME, tmp_path / "vit.npz", vit.state_dict())


@pytest.mark.parametrize("form", ["pth", "safetensors", "npz"])
def test_position_embeddings_of_another_grid_are_kept_as_they_are(form: str, tmp_path: Path) -> None:
    """The identity is computed before any resampling; forward resamples for its images."""
    vit = micro(img_size=96)
    path = tmp_path / f"vit.{form}"
    if form == "npz":
        np.savez(path, **flax_arrays(vit))  # type: ignore[arg-type]
    elif form == "pth":
        torch.save(vit.state_dict(), path)
    else:
        safetensors.torch.save_file(vit.state_dict(), path)
    same(NAME, path, vit.state_dict())
    backbone = load_backbone(NAME, path)
    assert backbone.vit.pos_embed.shape == (1, 12 * 12 + 1, 128)
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        tokens = backbone(images, taps={7}).tokens[7]
        torch.testing.assert_close(vit.norm(tokens), vit.eval().forward_features(images), rtol=1e-5, atol=1e-5)


def test_random_weights_are_the_same_every_time_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    first = load_backbone(NAME, "random")
    after = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(2), after)
    assert load_backbone(NAME, "random").identity == first.identity
    assert first.vit.blocks[0].attn.qkv.weight.std() > 0.01
    assert load_backbone("vit_tiny_patch16_224", "random").identity != first.identity


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("suffix", ["pth", "bin", "safetensors", "npz", "txt"])
@pytest.mark.parametrize(
    "content",
    [
        b"weights: none\n",
        b"",
        b"PK\x03\x04 cut off",
        pickle.dumps(Evil(), protocol=2),
        pickle.dumps({"pos_embed": 3}, protocol=2),
    ],
    ids=["text", "empty", "cut zip", "pickle with code", "pickle without tensors"],
)
def test_what_is_no_weights_file_is_refused_in_one_line_and_never_executed(
    content: bytes, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="backbone weights") as error:
        load_backbone(NAME, path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_a_torch_file_with_code_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": micro().state_dict(), "hook": Evil()}, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"backbone weights .*vit\.pth"):
        load_backbone(NAME, tmp_path / "vit.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("form", ["pth", "npz"])
@pytest.mark.parametrize(
    "other", [{"embed_dim": 64}, {"depth": 6}, {"depth": 9}, {"patch_size": 16}, {"mlp_ratio": 2}], ids=str
)
def test_the_weights_of_another_vit_are_refused(other: dict[str, Any], form: str, tmp_path: Path) -> None:
    path = tmp_path / f"vit.{form}"
    if form == "pth":
        torch.save(micro(**other).state_dict(), path)
    else:
        np.savez(path, **flax_arrays(micro(**other)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"backbone weights .*vit\.{form}") as error:
        load_backbone(NAME, path)
    assert NAME in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    state = micro().state_dict()
    del state["blocks.2.norm1.bias"]
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"blocks\.2\.norm1\.bias is missing"):
        load_backbone(NAME, tmp_path / "vit.pth")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"backbone weights .*none\.pth: no such file"):
        load_backbone(NAME, tmp_path / "none.pth")


def test_the_projects_vit_comes_with_its_weights() -> None:
    """The file is small enough for git and a wheel, in half precision, and differs from ``random``."""
    file = shipped_weights(NAME)
    assert file.stat().st_size <= 4_000_000
    state = safetensors.torch.load_file(file)
    assert {value.dtype for value in state.values()} == {torch.float16}
    same(NAME, file, {name: value.float() for name, value in state.items()})
    assert load_backbone(NAME).identity == backbone_identity(state)
    assert load_backbone(NAME).identity != load_backbone(NAME, "random").identity


def test_a_wheel_holds_the_projects_weights() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["hst"]
    shipped = {path for pattern in patterns for path in (ROOT / "hst").glob(pattern)}
    assert shipped == {shipped_weights(name) for name in PROJECT_VITS}


def test_the_projects_vit_has_no_download() -> None:
    with pytest.raises(ValueError, match=rf"has no download; its weights are .*{NAME}\.safetensors"):
        build_vit(NAME, pretrained=True)


def test_the_projects_vit_without_its_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hst.vit.weights.SHIPPED", tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"backbone weights .*{NAME}\.safetensors: no such file"):
        load_backbone(NAME)


def test_a_vit_that_timm_has_no_weights_for_is_told() -> None:
    with pytest.raises(
        ValueError, match=r"'vit_base_patch32_plus_256': timm has no weights for it; .*--backbone-weights"
    ):
        load_backbone("vit_base_patch32_plus_256")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name == "HF_HUB_OFFLINE"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


def on_download(monkeypatch: pytest.MonkeyPatch, action: Callable[[], Any]) -> None:
    """Call ``action`` where timm would download weights; models without weights are still made by timm."""
    create = timm.create_model

    def created(name: str, *, pretrained: bool = False, **kwargs: Any) -> Any:
        return action() if pretrained else create(name, pretrained=False, **kwargs)

    monkeypatch.setattr("timm.create_model", created)


def test_a_hub_that_is_away_is_told_at_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs() -> None:
        pytest.fail("the hub's client was called, which retries for minutes")

    on_download(monkeypatch, hangs)
    message = r"'vit_tiny_patch16_224': its own download failed: nobody answers at http://127.*--backbone-weights"
    with pytest.raises(ValueError, match=message):
        load_backbone("vit_tiny_patch16_224")


def test_a_download_that_fails_is_told_as_such(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise FileNotFoundError("An error happened while trying to locate the file on the Hub")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # then the client is called: it fails at once
    on_download(monkeypatch, fails)
    with pytest.raises(ValueError, match=r"its own download failed \(An error happened .*--backbone-weights"):
        load_backbone("vit_tiny_patch16_224")


def test_what_the_hub_left_in_its_cache_needs_no_hub(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = empty_cache / "models--timm--vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40) / "model.safetensors").touch()
    downloads = []

    def download() -> VisionTransformer:
        downloads.append(repository)
        return VisionTransformer(embed_dim=192, num_heads=3, num_classes=0)

    on_download(monkeypatch, download)
    load_backbone("vit_tiny_patch16_224")
    assert len(downloads) == 1


@pytest.mark.skipif(not REAL.is_file(), reason=f"needs the real ViT-Ti of the project's shared folder ({REAL.name})")
def test_the_real_vit_is_loaded_and_sees_what_timm_sees() -> None:
    backbone = load_backbone("vit_tiny_patch16_224.augreg_in21k_ft_in1k", REAL)
    state = {k: v.float() for k, v in safetensors.torch.load_file(REAL).items() if not k.startswith("head.")}
    assert backbone.identity == backbone_identity(state)
    vit = VisionTransformer(embed_dim=192, num_heads=3, num_classes=0).eval()
    vit.load_state_dict(state, strict=True)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        token = backbone(images, taps=(), class_token=True).class_token
        torch.testing.assert_close(token, vit(images), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="of another ViT than 'vit_small_patch16_224'"):
        load_backbone("vit_small_patch16_224", REAL)
