"""What a mode, a tag or a format says is heeded, or the file is refused by name; the same wherever images are read."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from hst.images.decoding import decode, orientation
from hst.images.formats import FORMATS, format_of
from hst.preprocessing import Preprocessing


def picture(size: tuple[int, int] = (40, 24)) -> Image.Image:
    """Four quarters of different colours, so that every turn shows."""
    image = Image.new("RGB", size, (200, 30, 30))
    half = (size[0] // 2, size[1] // 2)
    for place, colour in (((half[0], 0), (30, 200, 30)), ((0, half[1]), (30, 30, 200)), (half, (220, 220, 40))):
        image.paste(colour, (*place, *size))
    return image


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def grey_16(kind: str, low: int, high: int) -> bytes:
    values = np.linspace(low, high, 4096).astype(np.uint16).reshape(64, 64)
    return encoded(Image.fromarray(values), kind)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("low", "high"), [(300, 65535), (0, 65535), (30000, 31000)])
@pytest.mark.parametrize("decoding", ["shown", "stored"])
def test_16_bit_grey_is_scaled_by_its_whole_range(kind: str, low: int, high: int, decoding: str) -> None:
    found = pixels(decode(grey_16(kind, low, high), decoding=decoding))
    expected = np.linspace(low, high, 4096).astype(np.uint16).reshape(64, 64) / 65535 * 255
    assert np.abs(found - expected[..., None]).max() <= 0.5
    assert found.min() < found.max(), "it was white everywhere"


def test_16_bit_colour_keeps_its_high_byte(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + struct.pack(">6H", 256 * x, 512, 65535, 40_000, x, 0) for x in range(4))
    head = struct.pack(">IIBBBBB", 2, 4, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    assert pixels(decode(data))[3].tolist() == [[3, 2, 255], [40_000 >> 8, 0, 0]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_images_are_refused_by_name(tmp_path: Path, mode: str) -> None:
    values = np.linspace(0, 3, 64).reshape(8, 8).astype(np.int32 if mode == "I" else np.float32)
    (tmp_path / "depth.tif").write_bytes(encoded(Image.fromarray(values), "TIFF"))
    for given in (tmp_path / "depth.tif", Image.fromarray(values)):
        with pytest.raises(ValueError, match=rf"32-bit numbers \(mode {mode}\).*convert it to 8 or 16 bits"):
            decode(given)
    with pytest.raises(ValueError, match=r"depth\.tif"):
        Preprocessing(image_size=8).load(tmp_path / "depth.tif")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_the_orientation_tag_turns_the_image_before_it_is_resized(kind: str, tag: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    upright = picture()
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(tag, tag)  # the tag that undoes it
    turned = upright.copy()
    turned.getexif()[0x0112] = back
    how = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(ImageOps.exif_transpose(turned), kind, exif=exif, **how)
    found = decode(data)
    assert found.size == upright.size
    assert np.abs(pixels(found) - pixels(upright)).max() <= 12
    square = Preprocessing(image_size=16).pixels(data).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(square - pixels(Preprocessing(image_size=16).square(upright))).max() <= 12
    if tag > 1 and kind != "TIFF":  # PIL itself turns a TIFF
        assert orientation(Image.open(io.BytesIO(data))) == tag
        assert not np.array_equal(pixels(decode(data, decoding="stored").resize(upright.size)), pixels(found))


@pytest.mark.parametrize("tag", [0, 9, 257])
def test_an_orientation_that_means_nothing_is_no_orientation(tag: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    assert np.array_equal(pixels(decode(encoded(picture(), "PNG", exif=exif))), pixels(picture()))


def test_damaged_tags_do_not_turn_anything() -> None:
    data = encoded(picture(), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert np.array_equal(pixels(decode(data)), pixels(picture()))


def transparent(mode: str) -> Image.Image:
    """A circle's worth of shape in the alpha channel; the colours under it are noise."""
    noise = Image.effect_noise((32, 32), 80)
    shape = Image.new("L", (32, 32), 0)
    shape.paste(255, (8, 8, 24, 24))
    if mode == "LA":
        return Image.merge("LA", (noise, shape))
    rgba = Image.merge("RGBA", (noise, noise, noise, shape))
    if mode == "P":
        palette = noise.convert("P")  # a palette of all greys
        palette.paste(255, mask=shape.point(lambda v: 255 - v))
        palette.info["transparency"] = 255
        return palette
    return rgba


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGBA", "WEBP")]
)
@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 90)])
def test_transparent_pixels_show_the_background_and_not_what_lies_under_them(
    mode: str, kind: str, background: tuple[int, int, int]
) -> None:
    how = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encoded(transparent(mode), kind, **how)
    found = pixels(decode(data, background=background))
    outside = np.ones((32, 32), dtype=bool)
    outside[8:24, 8:24] = False
    assert (found[outside] == background).all(), "shapes are seen"
    assert (found[~outside] != background).any()
    assert Preprocessing(image_size=32, background=background).pixels(data)[:, 0, 0].tolist() == list(background)


def test_half_transparent_pixels_are_mixed_and_stored_ones_are_as_in_the_file() -> None:
    image = Image.new("RGBA", (4, 4), (100, 0, 200, 128))
    data = encoded(image, "PNG")
    assert pixels(decode(data))[0, 0].tolist() == pytest.approx([177, 127, 227], abs=1)
    assert pixels(decode(data, decoding="stored"))[0, 0].tolist() == [100, 0, 200]


def test_an_opaque_alpha_channel_changes_nothing() -> None:
    image = picture()
    image.putalpha(255)
    for decoding in ("shown", "stored"):
        assert np.array_equal(pixels(decode(encoded(image, "PNG"), decoding=decoding)), pixels(picture()))


def swapped_profile() -> bytes:
    """sRGB's own profile with red's and blue's primaries exchanged: a matrix profile whose effect is plain."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", data[128:132])[0]
    tags = {data[132 + 12 * i : 136 + 12 * i].decode(): 132 + 12 * i for i in range(count)}
    red, blue = tags["rXYZ"], tags["bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = data[blue + 4 : blue + 12], data[red + 4 : red + 12]
    return bytes(data).replace("sRGB".encode("utf-16-be"), "Swap".encode("utf-16-be")).replace(b"sRGB", b"Swap")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_colour_profile_is_converted_to_srgb(kind: str) -> None:
    how = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.new("RGB", (8, 8), (250, 20, 20)), kind, icc_profile=swapped_profile(), **how)
    assert pixels(decode(data))[0, 0].tolist() == pytest.approx([20, 20, 250], abs=8)
    assert pixels(decode(data, decoding="stored"))[0, 0].tolist() == pytest.approx([250, 20, 20], abs=8)


def test_srgb_itself_a_profile_of_another_colour_space_and_a_damaged_one_change_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (srgb, lab, b"damaged", srgb[:200]):
        data = encoded(picture(), "PNG", icc_profile=profile)
        assert np.array_equal(pixels(decode(data)), pixels(picture())), profile[:12]


def test_cmyk_with_adobes_mark_is_understood_and_without_it_is_refused() -> None:
    data = encoded(picture().convert("CMYK"), "JPEG", quality=100, subsampling=0)
    assert np.abs(pixels(decode(data)) - pixels(picture())).max() <= 12
    start = data.index(b"\xff\xee")
    length = struct.unpack(">H", data[start + 2 : start + 4])[0]
    unmarked = data[:start] + data[start + 2 + length :]
    with pytest.raises(ValueError, match="CMYK JPEG without Adobe's mark"):
        decode(unmarked)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_the_first_of_several_frames_is_used(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    how = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **how)
    assert pixels(decode(data))[0, 0].tolist() == [250, 0, 0]


def test_a_cameras_raw_file_is_refused_and_not_read_as_its_thumbnail() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1
    with pytest.raises(ValueError, match="its first frame is a thumbnail"):
        decode(encoded(picture(), "TIFF", tiffinfo=tags))


@pytest.mark.parametrize(
    ("beginning", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"8BPS\0\1", "Photoshop"),
        (b"%PDF-1.7", "PDF"),
    ],
)
def test_a_format_that_is_not_read_is_refused_by_its_name(tmp_path: Path, beginning: bytes, name: str) -> None:
    (tmp_path / "photo.jpg").write_bytes(beginning + bytes(100))
    for given in (beginning + bytes(100), tmp_path / "photo.jpg"):
        with pytest.raises(ValueError, match=f"a {name} file; expected one of PNG, JPEG"):
            decode(given)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_told_by_its_bytes(kind: str, tmp_path: Path) -> None:
    data = encoded(picture(), kind)
    assert format_of(data) == kind
    (tmp_path / "file.wrong").write_bytes(data)
    assert decode(tmp_path / "file.wrong").size == picture().size
