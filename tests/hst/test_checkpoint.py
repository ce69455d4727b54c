"""The light checkpoint: saved whole, checked to the last bit without torch, loaded strictly."""

import hashlib
import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from hst.checkpoint import (
    CheckpointError,
    CheckpointHeader,
    load_task_model,
    read_header,
    save_checkpoint,
    verify_file,
)
from hst.checkpoint_header import front_bytes
from hst.config import HSNConfig
from tests.hst.small_models import CLASSIFICATION


def content() -> dict[str, Any]:
    return {
        "task": "vtab-cifar100",
        "class_names": ["Apfel", "Bär", "Каша"],
        **CLASSIFICATION,
        "method": {"name": "hst", "widths": [8, 16], "depths": [1, 1]},
        "head": {"kind": "classification", "input": "side", "num_classes": 3},
        "preprocessing": {"image_size": 64, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "backbone": {"name": "vit_base_patch16_224.augreg_in21k", "identity": "ab" * 32},
        "metrics": {"val/top1": 0.75},
        "code_version": "0.1.0",
        "provenance": {"seeds": 0, "data_manifest_sha256": {"train": "cd" * 32}},
    }


def tensors() -> dict[str, torch.Tensor]:
    values = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(4, 3, generator=values),
        "half": torch.randn(5, generator=values).bfloat16(),
        "steps": torch.tensor(7),
        "transposed": torch.randn(3, 4, generator=values).T,
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, tensors(), **content())
    return path


def test_header_and_tensors_come_back_as_saved(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "one.safetensors"
    header = save_checkpoint(path, tensors(), **content())
    assert read_header(path) == verify_file(path) == header
    assert {name: getattr(header, name) for name in content()} == content()
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_same_content_gives_the_same_bytes(tmp_path: Path, saved: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_checkpoint(again, tensors(), **content())
    assert again.read_bytes() == saved.read_bytes()


def test_a_flip_of_any_one_byte_is_found(tmp_path: Path, saved: Path) -> None:
    sound = saved.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    for position in range(len(sound)):
        for flip in (0x01, 0x20):  # 0x20 turns a digest's letter to upper case, a space to NUL
            changed = bytearray(sound)
            changed[position] ^= flip
            damaged.write_bytes(changed)
            with pytest.raises(CheckpointError, match=r"damaged\.safetensors"):
                verify_file(damaged)


def test_other_white_space_in_the_padding_is_found(saved: Path) -> None:
    sound = saved.read_bytes()
    end = 8 + struct.unpack("<Q", sound[:8])[0]
    text = sound[8:end].rstrip(b" ")
    assert len(text) < end - 8, "the header happens to need no padding: change a name in content()"
    saved.write_bytes(sound[:8] + text + b"\n" * (end - 8 - len(text)) + sound[end:])
    with pytest.raises(CheckpointError, match="sha256 of the header should be"):
        read_header(saved)


def test_a_flipped_tensor_byte_is_told_with_both_hashes(saved: Path) -> None:
    header = read_header(saved)
    changed = bytearray(saved.read_bytes())
    changed[-1] ^= 1
    saved.write_bytes(changed)
    assert read_header(saved) == header
    with pytest.raises(CheckpointError, match=f"tensor bytes should be {header.tensors_sha256}, is [0-9a-f]{{64}}"):
        verify_file(saved)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
def test_a_file_cut_off_is_refused_by_its_header_alone(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="cut off"):
        read_header(saved)


def test_bytes_after_the_end_are_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match="extended"):
        read_header(saved)


def test_a_pickle_is_refused_and_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(pickle.dumps({"weight": [1.0]}))
    with pytest.raises(CheckpointError, match=r"pickle of torch\.save"):
        read_header(path)
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"pickle of torch\.save"):
        verify_file(path)


def test_a_safetensors_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not written by hst"):
        read_header(path)


def test_a_missing_file_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors: cannot be opened: No such file"):
        verify_file(tmp_path / "none.safetensors")


def test_an_announced_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**33))
        file.truncate(2**33 + 8)  # sparse
    with pytest.raises(CheckpointError, match="not a light checkpoint"):
        read_header(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "../up"}, r"task '\.\./up', expected a name that matches"),
        ({"task": "two\nlines"}, "task"),
        ({"class_names": ["a", "b"]}, "head has 3 classes, class_names 2"),
        ({"metrics": {"val/top1": float("nan")}}, "metric val/top1 is nan"),
        ({"metrics": {"val/top1": 10**400}}, "metric val/top1 is 1000.*, expected a finite number"),
        ({"backbone": {"name": "vit", "identity": "short"}}, "identity of 64 hexadecimal digits"),
        ({"provenance": {"folder": Path("x")}}, "cannot be written as JSON"),
        ({"head": {"input": "side", "num_classes": 3}}, "head lacks kind"),
        ({"method": {}}, "method lacks name"),
        ({"measure": {"name": "top1"}}, "measure lacks higher_is_better, unit"),
        ({"kind": None}, "kind None is not a text"),
    ],
)
def test_an_invalid_header_is_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path / "one.safetensors", tensors(), **(content() | change))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_previous_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def disk_full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(saved, {"weight": torch.zeros(2)}, **content())
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("end", ["Infinity", "1e999", "-1", "9" * 4300, "9" * 5000], ids=lambda end: end[:9])
def test_a_crafted_size_is_a_checkpoint_error(end: str, tmp_path: Path) -> None:
    index = f'{{"__metadata__": {{"hst": "{{}}"}}, "a": {{"data_offsets": [0, {end}]}}}}'.encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(index)) + index)
    with pytest.raises(CheckpointError, match="no readable light-checkpoint header"):
        read_header(tmp_path / "a.safetensors")


def test_another_format_version_is_refused_by_its_number(saved: Path) -> None:
    sound = saved.read_bytes()
    saved.write_bytes(sound.replace(rb"\"format_version\": 2", rb"\"format_version\": 3"))
    with pytest.raises(CheckpointError, match="format version 3, this version reads 1 and 2"):
        read_header(saved)


def test_reading_and_verifying_import_no_torch(saved: Path) -> None:
    program = (
        "import json, sys\n"
        "from hst.checkpoint import read_header, verify_file\n"
        f"assert verify_file({str(saved)!r}) == read_header({str(saved)!r})\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "safetensors", "numpy", "timm"} & set(json.loads(done.stdout))


# Loading, against a real model: the micro ViT with random weights.


@pytest.fixture(scope="module")
def backbone() -> Any:
    backbone = pytest.importorskip("hst.backbone")
    return backbone.load_backbone("hst_vit_micro_patch8_64", "random")


def trained_model(backbone: Any, seed: int = 3) -> Any:
    from hst.config import HSN_PRESETS
    from hst.model import build_classifier

    model = build_classifier(backbone, HSN_PRESETS["HSN_S"], num_classes=3, seed=seed, task="vtab-cifar100")
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model.train()
    model(images, torch.tensor([0, 1, 2, 0, 1, 2]))  # moves the BatchNorm statistics off their start
    return model.eval()


def save_model(path: Path, backbone: Any, model: Any) -> CheckpointHeader:
    described = content() | {
        **CLASSIFICATION,
        "method": model.extractor.spec(),
        "backbone": {"name": backbone.name, "identity": backbone.identity},
    }
    return save_checkpoint(path, model.state_dict(), **described)


def test_a_loaded_model_predicts_what_the_saved_one_did(tmp_path: Path, backbone: Any) -> None:
    model = trained_model(backbone)
    header = save_model(tmp_path / "one.safetensors", backbone, model)
    loaded, came = load_task_model(tmp_path / "one.safetensors", backbone)
    assert came == header
    assert not loaded.training
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(loaded.predict(images), model.predict(images))


def save_version_1(path: Path, backbone: Any, model: Any) -> None:
    """A file as it was written before headers had a kind, a measure and a method."""
    packed = safetensors.torch.save({name: value.contiguous() for name, value in model.state_dict().items()})
    length = struct.unpack("<Q", packed[:8])[0]
    index, data = json.loads(packed[8 : 8 + length]), packed[8 + length :]
    hsn = {name: value for name, value in model.extractor.spec().items() if name != "name"}
    newer = {"kind", "measure", "method"}
    header = {name: value for name, value in content().items() if name not in newer} | {
        "format_version": 1,
        "hsn": hsn,
        "backbone": {"name": backbone.name, "identity": backbone.identity},
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
        "header_sha256": "0" * 64,
    }
    signature = hashlib.sha256(front_bytes(header, index)).hexdigest()
    path.write_bytes(front_bytes(header | {"header_sha256": signature}, index) + data)


def test_a_checkpoint_of_version_1_loads_as_classification_by_hst(tmp_path: Path, backbone: Any) -> None:
    model = trained_model(backbone)
    save_version_1(tmp_path / "one.safetensors", backbone, model)
    loaded, header = load_task_model(tmp_path / "one.safetensors", backbone)
    assert {"kind": header.kind, "measure": header.measure} == CLASSIFICATION
    assert header.method == model.extractor.spec()
    assert HSNConfig.from_dict(header.hsn) == model.extractor.config
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(loaded.predict(images), model.predict(images))


def test_an_unknown_method_or_head_is_named_with_those_that_are_known(tmp_path: Path, backbone: Any) -> None:
    path, model = tmp_path / "one.safetensors", trained_model(backbone)
    own = {"name": backbone.name, "identity": backbone.identity}
    for changed, message in (
        ({"method": {"name": "lora"}}, "method 'lora': expected one of hst"),
        ({"head": {"kind": "boxes"}}, "head 'boxes': expected one of classification"),
    ):
        described = content() | {"method": model.extractor.spec(), "backbone": own} | changed
        save_checkpoint(path, model.state_dict(), **described)
        with pytest.raises(CheckpointError, match=message):
            load_task_model(path, backbone)


def test_nothing_of_the_frozen_vit_is_in_the_file(tmp_path: Path, backbone: Any) -> None:
    model = trained_model(backbone)
    save_model(tmp_path / "one.safetensors", backbone, model)
    names = safetensors.torch.load_file(tmp_path / "one.safetensors").keys()
    assert names == model.state_dict().keys()
    assert not any("backbone" in name for name in names)


def test_another_backbone_is_refused_with_both_identities(tmp_path: Path, backbone: Any) -> None:
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, tensors(), **content())
    with pytest.raises(CheckpointError, match=f"identity {'ab' * 32}, but came with .*{backbone.identity}"):
        load_task_model(path, backbone)


def test_missing_unknown_and_misshapen_tensors_are_all_named(tmp_path: Path, backbone: Any) -> None:
    model = trained_model(backbone)
    state = dict(model.state_dict())
    first, second, third, *_ = [name for name, value in state.items() if value.dim() >= 1]
    del state[first]
    state[second] = torch.zeros(1, 2, 3, 4, 5)
    state[third] = state[third].double()
    state["stowaway"] = torch.zeros(1)
    described = content() | {
        **CLASSIFICATION,
        "method": model.extractor.spec(),
        "backbone": {"name": backbone.name, "identity": backbone.identity},
    }
    save_checkpoint(tmp_path / "one.safetensors", state, **described)
    with pytest.raises(CheckpointError) as caught:
        load_task_model(tmp_path / "one.safetensors", backbone)
    message = str(caught.value)
    for part in (f"missing {first}", "not expected stowaway", f"{second} should be", "torch.float64"):
        assert part in message


def test_a_damaged_file_is_refused_before_a_model_is_built(tmp_path: Path, backbone: Any) -> None:
    path = tmp_path / "one.safetensors"
    save_model(path, backbone, trained_model(backbone))
    changed = bytearray(path.read_bytes())
    changed[-9] ^= 0x10
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match="damaged"):
        load_task_model(path, backbone)
