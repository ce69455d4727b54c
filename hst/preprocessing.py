"""A recipe's pixels: decode, resize to a square, normalise. The same in training, evaluation and prediction."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Direct resize to ``image_size`` x ``image_size`` (PIL, antialiased), then (x / 255 - mean) / std per channel."""

    image_size: int = 224
    """Side of the square that the model sees, in pixels."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Per RGB channel, of values in [0, 1]."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Per RGB channel, of values in [0, 1]."""
    interpolation: str = "bicubic"
    """PIL's filter for the resize."""

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation={self.interpolation!r}: expected one of {', '.join(INTERPOLATIONS)}")
        if self.image_size < 1:
            raise ValueError(f"image_size={self.image_size!r}: expected pixels, at least 1")
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean={self.mean!r}, std={self.std!r}: expected three numbers each, std over 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`."""
        return cls(**values)

    def pixels(self, image: bytes | str | Path | Image.Image) -> torch.Tensor:
        """Decode and resize one image: a file's bytes, a path or a PIL image -> uint8 RGB (3, S, S).

        Raises:
            ValueError: the bytes are no image that PIL can read.
        """
        try:
            opened = (
                image
                if isinstance(image, Image.Image)
                else Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
            )
            rgb = opened.convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            name = f"{len(image)} bytes" if isinstance(image, bytes) else str(image)
            raise ValueError(f"not a readable image ({name}): {error}") from error
        if rgb.size != (self.image_size, self.image_size):
            rgb = rgb.resize((self.image_size, self.image_size), INTERPOLATIONS[self.interpolation])
        # HWC -> CHW by numpy, in this thread: torch would wake all its threads and, on a busy machine, wait for them.
        return torch.from_numpy(np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1)))

    def normalize(self, pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """uint8 (B, 3, S, S) -> ``dtype`` (B, 3, S, S) on the same device."""
        shape = (1, 3, 1, 1)
        mean = torch.tensor(self.mean, dtype=dtype, device=pixels.device).view(shape)
        std = torch.tensor(self.std, dtype=dtype, device=pixels.device).view(shape)
        return (pixels.to(dtype) / 255 - mean) / std

    def load(self, path: str | Path) -> torch.Tensor:
        """One image file as a batch of one: float32 (1, 3, S, S), ready for ``predict``."""
        return self.normalize(self.pixels(path)[None])
