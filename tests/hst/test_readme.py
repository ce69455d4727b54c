"""What ``hst/README.md`` shows is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hst.backbone
from hst.backbone import load_backbone
from hst.checkpoint import save_checkpoint
from hst.model import build_classifier
from hst.preprocessing import Preprocessing
from tests.hst.small_models import CLASSIFICATION, SMALL_HSN

README = Path(__file__).resolve().parents[2] / "hst" / "README.md"


def test_the_five_lines_load_a_light_checkpoint_and_predict_on_an_image_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block, pooled = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for line in block.splitlines() if line]
    assert len(lines) == 5

    vit = load_backbone("hst_vit_micro_patch8_64", "random")
    model = build_classifier(vit, SMALL_HSN, num_classes=3)
    model.head.linear.bias.data = torch.tensor([0.0, 5.0, 0.0])
    preprocessing = Preprocessing(image_size=64)
    for task in ("vtab-cifar100", "vtab-dtd"):
        save_checkpoint(
            tmp_path / f"{task}.safetensors",
            model.state_dict(),
            task=task,
            class_names=["apple", "bear", "cup"],
            method=model.extractor.spec(),
            **CLASSIFICATION,
            head={"kind": "classification", "input": "side", "num_classes": 3},
            preprocessing=preprocessing.to_dict(),
            backbone={"name": vit.name, "identity": vit.identity},
            metrics={},
            code_version="0",
            provenance={},
        )
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for name in ("photo.jpg", "wall.jpg"):
        Image.fromarray(noise).save(tmp_path / name)

    names: list[str] = []

    def load(name: str) -> hst.backbone.Backbone:
        names.append(name)
        return vit  # the small one; the README's is a download of 350 MB

    monkeypatch.setattr(hst.backbone, "load_backbone", load)
    monkeypatch.chdir(tmp_path)
    found: dict[str, torch.Tensor] = {}
    exec("\n".join(lines), found)
    assert names == ["vit_base_patch16_224.augreg_in21k"]
    assert capsys.readouterr().out == "bear\n"
    assert torch.equal(found["images"], preprocessing.load("photo.jpg"))
    exec(pooled, found)
    assert capsys.readouterr().out == "vtab-cifar100 bear\nvtab-dtd bear\n"


def test_every_file_is_in_the_readmes_list() -> None:
    text = README.read_text(encoding="utf-8").split("## Files")[1]
    package = README.parent
    missing = [path.name for path in package.glob("*.py") if not path.name.startswith("__") and path.name not in text]
    assert missing == []


def test_the_words_of_the_readme_are_names_of_the_code() -> None:
    text = README.read_text(encoding="utf-8")
    source = "\n".join(path.read_text(encoding="utf-8") for path in README.parent.rglob("*.py"))
    table = text.split("| --- | --- | --- |\n")[1].split("\n\n")[0]
    ours = {name for row in table.splitlines() for name in re.findall(r"`([A-Z]\w+)", row.split("|")[3])}
    assert ours >= {"MetaRegister", "TBridge", "SideBlock", "ConvStem", "HSNConfig"}
    assert all(f"class {name}" in source for name in ours)
