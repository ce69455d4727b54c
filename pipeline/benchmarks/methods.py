"""The methods that are measured side by side on one ViT: HST, HST in the released code's order, and other methods.

Comparators are as their libraries make them: the ViT is timm's, LoRA is the peft package's. All use torch's
scaled-dot-product attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from hst.backbone import Backbone
from hst.config import HSN_PRESETS
from hst.model import build_classifier
from hst.vit.weights import build_vit
from pipeline.benchmarks.released_order import ReleasedOrder


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to tune a ViT."""

    model: nn.Module
    """The model, in training mode. The optimiser gets its trainable parameters."""
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """Images (B, 3, S, S) and labels (B,) -> the mean cross-entropy."""
    predict: Callable[[torch.Tensor], torch.Tensor]
    """Images -> logits, without gradients, in evaluation mode."""
    frozen: tuple[torch.Tensor, ...] = ()
    """Weights that are not in ``model``'s parameters and buffers."""
    copies: Callable[[], int] = lambda: 0
    """Bytes of weights in another type that are kept; others cast them in each step, where they count as saved."""

    @property
    def weights(self) -> list[torch.Tensor]:
        """All tensors that exist even if no step is made."""
        return [*self.model.parameters(), *self.model.buffers(), *self.frozen]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all methods have in common."""

    backbone: str
    """timm's name; the weights are random, which costs the same."""
    image_size: int
    num_classes: int
    device: torch.device
    hsn: str = "HSN_B"
    """Preset of the side network."""


def _hst(setting: Setting, memory: str, wrapped: bool = False) -> Method:
    vit = build_vit(setting.backbone)
    backbone = Backbone(setting.backbone, vit, "").to(setting.device)
    model = build_classifier(backbone, HSN_PRESETS[setting.hsn], num_classes=setting.num_classes).to(setting.device)
    model.memory = memory
    one: Any = ReleasedOrder(model) if wrapped else model
    one.train()
    frozen = (*vit.parameters(), *vit.buffers())
    return Method(
        model=one,
        loss=lambda x, y: one(x, y)["loss"],
        predict=one.predict,
        frozen=frozen,
        copies=lambda: backbone.copied_bytes,
    )


def _timm(setting: Setting) -> nn.Module:
    base = setting.backbone
    return timm.create_model(base, num_classes=setting.num_classes, img_size=setting.image_size).to(setting.device)


def _classifier(model: nn.Module) -> Method:
    def predict(images: torch.Tensor) -> torch.Tensor:
        model.eval()
        with torch.no_grad():
            logits: torch.Tensor = model(images)
        model.train()
        return logits

    model.train()
    return Method(model=model, loss=lambda x, y: F.cross_entropy(model(x).float(), y), predict=predict)


def _full(setting: Setting) -> Method:
    return _classifier(_timm(setting))


def _linear(setting: Setting) -> Method:
    model: Any = _timm(setting)
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    return _classifier(model)


def _lora(setting: Setting) -> Method:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ValueError(
            "lora: the peft package is not installed: pip install peft, or leave lora out of --methods"
        ) from error
    config = LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"], modules_to_save=["head"])
    return _classifier(get_peft_model(_timm(setting), config))


METHODS: dict[str, Callable[[Setting], Method]] = {
    "hst": lambda setting: _hst(setting, "speed"),
    "hst-balanced": lambda setting: _hst(setting, "balanced"),
    "hst-memory": lambda setting: _hst(setting, "memory"),
    "hst-plain": lambda setting: _hst(setting, "speed", wrapped=True),
    "full": _full,
    "linear": _linear,
    "lora": _lora,
}
"""`hst-plain` is the released code's order."""
