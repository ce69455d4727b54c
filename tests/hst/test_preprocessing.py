"""A recipe's pixels: what PIL resizes, normalised."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hst.preprocessing import Preprocessing


def picture(mode: str = "RGB", size: tuple[int, int] = (50, 30)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_pixels_are_pils_direct_resize_of_the_rgb_image_from_bytes_path_or_image(
    mode: str, interpolation: str, tmp_path: Path
) -> None:
    image = picture(mode)
    path = tmp_path / "image.png"
    path.write_bytes(png(image))
    preprocessing = Preprocessing(image_size=16, interpolation=interpolation)
    expected = image.convert("RGB").resize((16, 16), getattr(Image.Resampling, interpolation.upper()))
    want = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
    for source in (image, path, str(path), png(image)):
        pixels = preprocessing.pixels(source)
        assert pixels.dtype == torch.uint8
        assert pixels.is_contiguous()
        assert torch.equal(pixels, want)


def test_normalize_is_x_over_255_minus_mean_over_std_per_channel() -> None:
    preprocessing = Preprocessing(image_size=4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    got = preprocessing.normalize(pixels, torch.float64)
    for channel, (mean, std) in enumerate(zip(preprocessing.mean, preprocessing.std, strict=True)):
        torch.testing.assert_close(got[:, channel], (pixels[:, channel].double() / 255 - mean) / std)
    assert preprocessing.normalize(pixels).dtype == torch.float32
    extremes = Preprocessing().normalize(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2))
    assert extremes.unique().tolist() == [-1, 1]


def test_load_is_one_file_as_a_batch(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(png(picture()))
    preprocessing = Preprocessing(image_size=8)
    batch = preprocessing.load(tmp_path / "image.png")
    assert batch.shape == (1, 3, 8, 8)
    assert torch.equal(batch[0], preprocessing.normalize(preprocessing.pixels(picture())[None])[0])


def test_it_travels_as_json() -> None:
    preprocessing = Preprocessing(image_size=112, mean=(0.1, 0.2, 0.3), interpolation="bilinear")
    assert preprocessing.to_dict() == {
        "image_size": 112,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bilinear",
    }
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing


@pytest.mark.parametrize("content", [b"", b"no image", png(picture())[:-40]], ids=["empty", "text", "cut off"])
def test_what_is_no_image_is_a_value_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"not a readable image \({len(content)} bytes\)"):
        Preprocessing().pixels(content)
    with pytest.raises(ValueError, match=r"not a readable image \(.*image\.png\)"):
        Preprocessing().pixels(path)


def test_a_missing_file_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Preprocessing().load(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interpolation": "lanczos3"}, "interpolation='lanczos3': expected one of nearest, bilinear, bicubic"),
        ({"image_size": 0}, "image_size=0"),
        ({"std": (0.5, 0.0, 0.5)}, "std over 0"),
        ({"mean": (0.5,)}, "three numbers each"),
    ],
)
def test_values_that_are_not_possible_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**changes)
