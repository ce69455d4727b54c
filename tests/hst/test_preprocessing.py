"""A recipe's images are resized by PIL and normalised."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms.functional import InterpolationMode, resized_crop

from hst.preprocessing import Preprocessing, as_pixels


def picture(mode: str = "RGB", size: tuple[int, int] = (50, 30)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    return encoded(image, "PNG")


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
        "crop_fraction": None,
        "decoding": "shown",
        "background": [255, 255, 255],
    }
    for sent in (preprocessing, Preprocessing(crop_fraction=0.875)):
        assert Preprocessing.from_dict(sent.to_dict()) == sent


def test_a_header_from_before_there_were_crops_is_a_direct_resize() -> None:
    values = Preprocessing().to_dict()
    del values["crop_fraction"]
    assert Preprocessing.from_dict(values) == Preprocessing(crop_fraction=None)


def test_a_header_from_before_tags_were_heeded_reads_files_as_stored() -> None:
    values = {k: v for k, v in Preprocessing().to_dict().items() if k not in ("decoding", "background")}
    assert Preprocessing.from_dict(values) == Preprocessing(decoding="stored")


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (64, 64), (41, 300), (256, 256)])
@pytest.mark.parametrize(("image_size", "fraction"), [(224, 0.875), (224, 0.9), (64, 1.0), (33, 0.95)])
def test_a_crop_is_torchvisions_resize_of_the_shorter_side_and_centre_crop_bit_for_bit(
    size: tuple[int, int], image_size: int, fraction: float
) -> None:
    reference = create_transform(image_size, crop_pct=fraction, interpolation="bicubic", normalize=False)
    image = picture(size=size)
    pixels = Preprocessing(image_size=image_size, crop_fraction=fraction).pixels(image)
    assert torch.equal(pixels, reference(image))


def test_a_part_of_an_image_becomes_the_square_as_torchvision_cuts_it() -> None:
    image = picture(size=(120, 90))
    left, top, width, height = box = (17, 5, 80, 61)
    expected = resized_crop(image, top, left, height, width, [32, 32], InterpolationMode.BICUBIC)
    for crop_fraction in (None, 0.875):
        square = Preprocessing(image_size=32, crop_fraction=crop_fraction).square(image, box)
        assert torch.equal(as_pixels(square), torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(("side", "filter"), [(60000, "ignore"), (10000, "ignore"), (10000, "error")])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    side: int, filter: Literal["ignore", "error"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "convert", None)
    content = png_that_claims(side, side)
    with warnings.catch_warnings():
        warnings.simplefilter(filter, Image.DecompressionBombWarning)
        with pytest.raises(ValueError, match=r"image too large \(\d+ bytes\): .*pixels"):
            Preprocessing().pixels(content)


def test_a_strip_whose_crop_would_take_too_many_pixels_is_refused() -> None:
    strip = Image.new("RGB", (20000, 1))
    assert Preprocessing().pixels(strip).shape == (3, 224, 224)
    with pytest.raises(ValueError, match=r"\(an image of 20000 x 1, resized\): 5120000 x 256 pixels; at most 89478485"):
        Preprocessing(crop_fraction=0.875).pixels(strip)


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", png(picture())[:-40], encoded(picture(), "JPEG")[:-40]],
    ids=["empty", "text", "a PNG cut off", "a JPEG cut off"],
)
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
        ({"crop_fraction": 0.0}, "crop_fraction=0.0: expected a fraction above 0, at most 1"),
        ({"crop_fraction": 1.2}, "crop_fraction=1.2"),
        ({"std": (0.5, 0.0, 0.5)}, "std over 0"),
        ({"mean": (0.5,)}, "three numbers each"),
    ],
)
def test_values_that_are_not_possible_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**changes)
