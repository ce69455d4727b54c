"""Prepares a recipe's images: decode, resize to a square, normalise. Evaluation, prediction and training share it; in
training an augmentation may choose the part of an image that becomes the square.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hst.config import DECODINGS, INTERPOLATIONS
from hst.images.decoding import WHITE, check_size, decode

FILTERS = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}
"""PIL's filters by name."""

Box = tuple[int, int, int, int]
"""A part of an image: left, top, width, height in its pixels."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """One antialiased resize (PIL) to ``image_size`` x ``image_size`` pixels, then (x / 255 - mean) / std per channel.

    The resize squeezes the whole image into the square. With ``crop_fraction`` the centre is cut out.
    """

    image_size: int = 224
    """Side of the square that the model sees, in pixels."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean of each RGB channel, for values in [0, 1]."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Standard deviation of each RGB channel, for values in [0, 1]."""
    interpolation: str = "bicubic"
    """PIL's filter for the resize."""
    crop_fraction: float | None = None
    """timm's crop_pct, in (0, 1]: the shorter side is resized to ``image_size / crop_fraction`` pixels, rounded down,
    and the central square is cut out. None resizes the whole image to the square."""
    decoding: str = "shown"
    """How a file becomes RGB: one of `hst.config.DECODINGS`."""
    background: tuple[int, int, int] = WHITE
    """The colour under transparent pixels, for the decoding ``shown``: RGB from 0 to 255."""

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation={self.interpolation!r}: expected one of {', '.join(INTERPOLATIONS)}")
        if self.crop_fraction is not None and not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction={self.crop_fraction!r}: expected a fraction above 0, at most 1, or None")
        if self.image_size < 1:
            raise ValueError(f"image_size={self.image_size!r}: expected at least 1 pixel")
        if self.decoding not in DECODINGS:
            raise ValueError(f"decoding={self.decoding!r}: expected one of {', '.join(DECODINGS)}")
        object.__setattr__(self, "background", tuple(self.background))
        if len(self.background) != 3 or not all(value in range(256) for value in self.background):
            raise ValueError(f"background={self.background!r}: expected three whole numbers from 0 to 255")
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean={self.mean!r}, std={self.std!r}: expected three numbers each, std over 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        lists = {field: list(getattr(self, field)) for field in ("mean", "std", "background")}
        return {**dataclasses.asdict(self), **lists}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`. Values without ``decoding`` are of a time when all files were read as stored."""
        return cls(**{"decoding": "stored", **values})

    def pixels(self, image: bytes | str | Path | Image.Image) -> torch.Tensor:
        """Decode and resize one image: a file's bytes, a path or a PIL image -> uint8 RGB (3, S, S).

        Raises:
            ValueError: the image is damaged, too large, or of a format or mode that is not understood.
        """
        return as_pixels(self.square(self.decode(image)))

    def decode(self, image: bytes | str | Path | Image.Image) -> Image.Image:
        """One image as RGB; see `hst.images.decoding.decode`."""
        return decode(image, decoding=self.decoding, background=self.background)

    def square(self, image: Image.Image, box: Box | None = None) -> Image.Image:
        """The S x S square of a decoded image. With ``box``, that part of the image is resized without a crop.

        Raises:
            ValueError: the image is so long and narrow that it would have more than MAX_PIXELS before the crop.
        """
        size, crop = (self.image_size, self.image_size), None
        if box is not None:
            left, top, width, height = box
            # Cut out first: with resize(box=...) the filter would see pixels beyond the box.
            image = image.crop((left, top, left + width, top + height))
        elif self.crop_fraction is not None:
            size = _with_shorter_side(image.size, math.floor(self.image_size / self.crop_fraction))
            left, top = (round((side - self.image_size) / 2) for side in size)
            crop = (left, top, left + self.image_size, top + self.image_size)
        if image.size != size:
            check_size(size, f"an image of {image.width} x {image.height}, resized")
            image = image.resize(size, FILTERS[self.interpolation])
        return image if crop is None else image.crop(crop)

    def normalize(self, pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """uint8 (B, 3, S, S) -> ``dtype`` (B, 3, S, S) on the same device."""
        mean, std = (_by_channel(tuple(values), dtype, pixels.device) for values in (self.mean, self.std))
        return (pixels.to(dtype) / 255 - mean) / std

    def load(self, path: str | Path) -> torch.Tensor:
        """One image file as a batch of one: float32 (1, 3, S, S), ready for ``predict``."""
        return self.normalize(self.pixels(path)[None])


@functools.cache
def _by_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The values as (1, 3, 1, 1). They are cached, because the host waits for each copy to a GPU."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device).view(1, 3, 1, 1)


def as_pixels(image: Image.Image) -> torch.Tensor:
    """An RGB image -> uint8 (3, H, W)."""
    # HWC -> CHW by numpy, which stays in this thread. torch would wake all its threads and wait for them on a busy CPU.
    return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))


def _with_shorter_side(size: tuple[int, int], pixels: int) -> tuple[int, int]:
    """``size`` scaled so that the shorter side has ``pixels``. The longer one is rounded down, as in torchvision."""
    width, height = size
    if width <= height:
        return pixels, int(pixels * height / width)
    return int(pixels * width / height), pixels
