"""The checks before training find every image on which training would fail."""

import io
import struct
import zlib

import pytest
from PIL import Image

from hst.images.decoding import MAX_PIXELS
from hst.images.formats import FORMATS
from hst.preprocessing import Preprocessing
from pipeline.data.images import check_decodes, image_member


def encoded(kind: str, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 50).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "member"), [(kind, members[0]) for kind, members in FORMATS.items()])
def test_the_member_is_the_real_format(kind: str, member: str) -> None:
    assert image_member(encoded(kind)) == member
    check_decodes(encoded(kind))


@pytest.mark.parametrize("kind", [*FORMATS])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_cut_image_is_refused_here_if_training_would_refuse_it(kind: str, share: float) -> None:
    data = encoded(kind)
    cut = data[: int(share * len(data))]
    for look in (check_decodes, Preprocessing(image_size=8).pixels):
        with pytest.raises(ValueError, match="not a readable image"):
            look(cut)


@pytest.mark.filterwarnings("ignore:Image size")
def test_an_image_of_too_many_pixels_is_refused_here_as_in_training() -> None:
    file = io.BytesIO()
    Image.new("1", (int(MAX_PIXELS**0.5) + 1,) * 2).save(file, "PNG")
    for look in (check_decodes, Preprocessing(image_size=8).pixels):
        with pytest.raises(ValueError, match="at most 89478485 are"):
            look(file.getvalue())


def test_an_image_that_only_claims_too_many_pixels_is_refused_here_as_in_training() -> None:
    """For more than twice MAX_PIXELS, PIL itself raises an error."""
    file = io.BytesIO()
    Image.new("1", (1, 1)).save(file, "PNG")
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + file.getvalue()[24:29]
    data = file.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + file.getvalue()[33:]
    for look in (check_decodes, Preprocessing(image_size=8).pixels):
        with pytest.raises(ValueError, match="3600000000 pixels"):
            look(data)


def test_what_is_no_image_says_how_it_begins() -> None:
    with pytest.raises(ValueError, match="it begins with b'GIF90a'"):
        image_member(b"GIF90a")
