"""Computes what a task model costs, without its weights: parameters per part, share of the ViT, GFLOPs, file size.

The command is ``python -m hst describe vit_base_patch16_224 --hsn HSN_B --num-classes 100``. Everything is built on
torch's meta device, which needs no memory, no values and no download.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from hst.backbone import Backbone, check_supported
from hst.config import HSNConfig
from hst.model import TaskModel, build_classifier
from hst.vit.weights import build_skeleton

HEAD = "head"
REST = "the rest of the method"
PARTS: dict[str, str] = {
    # part: pattern of the names of its parameters, in the order of the table
    "LayerNorms of the ViT's blocks": r"extractor\.block_norms\.",
    "Meta-Register": r"extractor\.meta_register\.",
    "T-Bridge": r".*\.bridge\.proj\.",
    "norms of the bridged registers": r".*\.bridge\.register_norm\.",
    "conv stem": r"extractor\.side\.stages\.0\.embed\.",
    "downsamples": r"extractor\.side\.stages\.\d+\.embed\.",
    "side blocks": r"extractor\.side\.stages\.\d+\.blocks\.",
    "norms of the stages": r"extractor\.side\.stages\.\d+\.norm\.",
    HEAD: r"head\.",
}


@dataclass(frozen=True, kw_only=True)
class Description:
    """The cost of one task model."""

    backbone: str
    """timm's name of the ViT."""
    hsn: HSNConfig
    """Resolved configuration of the side network."""
    image_size: int
    """Side of the image in pixels, for the GFLOPs."""
    num_classes: int
    """Number of classes of the head."""
    parts: dict[str, int]
    """Number of trainable parameters by part; the keys are those of `PARTS`."""
    vit_parameters: int
    """Number of parameters of the frozen ViT, without its classifier."""
    vit_gflops: float
    """GFLOPs of a forward pass of one image through the frozen ViT alone; a multiply-add counts as two operations."""
    gflops: float
    """GFLOPs of a forward pass of one image through the whole task model."""
    checkpoint_bytes: int
    """Size of the tensors in the light checkpoint: float32 parameters and buffers."""

    @property
    def without_head(self) -> int:
        """Number of trainable parameters without the head, as the paper counts."""
        return sum(count for part, count in self.parts.items() if part != HEAD)

    @property
    def with_head(self) -> int:
        """Number of all trainable parameters."""
        return sum(self.parts.values())


def describe(
    name: str, hsn: HSNConfig, *, num_classes: int, head_input: str = "side", image_size: int = 224
) -> Description:
    """The cost of ``hsn`` beside the timm ViT ``name``. It needs no weights.

    Raises:
        ValueError: The ViT is unknown or unsupported, or the settings do not fit it.
    """
    if image_size < 1:
        raise ValueError(f"image_size={image_size}: expected pixels, at least one patch")
    check_supported(name)
    with torch.device("meta"):
        backbone = Backbone(name, build_skeleton(name), "")
        model = build_classifier(backbone, hsn, num_classes=num_classes, head_input=head_input)
        images = torch.empty(1, 3, image_size, image_size)
        with torch.no_grad(), FlopCounterMode(display=False) as vit_counter:
            backbone(images, taps=())
        with FlopCounterMode(display=False) as counter:
            model.predict(images)
    return Description(
        backbone=name,
        hsn=hsn.resolve(backbone.depth),
        image_size=image_size,
        num_classes=num_classes,
        parts=count_parts(model),
        vit_parameters=sum(p.numel() for p in backbone.parameters()),
        vit_gflops=vit_counter.get_total_flops() / 1e9,
        gflops=counter.get_total_flops() / 1e9,
        checkpoint_bytes=sum(t.numel() * t.element_size() for t in model.state_dict().values()),
    )


def count_parts(model: TaskModel) -> dict[str, int]:
    """The number of trainable parameters of a task model by part. Those of no part in `PARTS` count as `REST`."""
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        part = next((part for part, pattern in PARTS.items() if re.match(pattern, name)), REST)
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def format_description(description: Description) -> str:
    """The table that ``python -m hst describe`` prints."""
    d, config = description, description.hsn
    defaults = HSNConfig()
    switches = [f.name for f in dataclasses.fields(config) if isinstance(getattr(config, f.name), bool)]
    off = [name for name in switches if getattr(config, name) != getattr(defaults, name)]
    rows: list[tuple[str, str]] = [(part, str(count)) for part, count in d.parts.items() if part != HEAD]
    rows += [
        ("total without head", str(d.without_head)),
        (f"head, {d.num_classes} classes", str(d.parts[HEAD])),
        ("total with head", str(d.with_head)),
    ]
    facts = [
        ("frozen ViT, without its classifier", str(d.vit_parameters)),
        ("trained without head, share of the ViT", f"{100 * d.without_head / d.vit_parameters:.3f} %"),
        ("trained with head, share of the ViT", f"{100 * d.with_head / d.vit_parameters:.3f} %"),
        (f"forward at {d.image_size} px, ViT alone", f"{d.vit_gflops:.2f} GFLOP/image"),
        (f"forward at {d.image_size} px, with HST", f"{d.gflops:.2f} GFLOP/image"),
        ("light checkpoint, float32", f"{d.checkpoint_bytes / 1e6:.2f} MB"),
    ]
    width = max(len(label) for label, _ in rows + facts)
    digits = max(len(value) for _, value in rows)
    lines = [
        f"{d.backbone} with HSN widths {_joined(config.widths)}, depths {_joined(config.depths or ())}, heads "
        f"{_joined(config.num_heads)}, {config.num_registers} register{'s' * (config.num_registers != 1)} a ViT block"
        + "".join(f", {name} off" for name in off),
        "",
        f"{'trainable parameters':<{width}}",
        *(f"{label:<{width}}  {value:>{digits}}" for label, value in rows),
        "",
        *(f"{label:<{width}}  {value:>{digits}}" for label, value in facts),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _joined(values: tuple[int, ...]) -> str:
    return "-".join(map(str, values))
