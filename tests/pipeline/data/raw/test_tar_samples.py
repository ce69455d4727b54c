"""Foreign tars: the positions of their images, and all their possible faults."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from webdataset import TarWriter

from pipeline.data.raw.tar_samples import TarSample, read_tar
from pipeline.data.samples import Listing

Change = Callable[[tarfile.TarInfo], None]


def write_tar(path: Path, members: list[tuple[str, bytes]], change: Change | None = None) -> Path:
    """Writes a tar of these members; `change` alters the header of the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (name, data) in enumerate(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change and number == 0:
                change(info)
            tar.addfile(info, io.BytesIO(data))
    return path


def read(path: Path) -> tuple[list[TarSample], list[str]]:
    listing = Listing()
    return read_tar(str(path), path.name, listing), listing.faults


def told(path: Path) -> list[str]:
    _, faults = read(path)
    return faults


def test_spans_are_the_images_own_bytes_in_the_tars_order(tmp_path: Path) -> None:
    images = {f"s{i:07d}": bytes([i]) * (400 + 100 * i) for i in (3, 1, 2)}
    with open(tmp_path / "0.tar", "wb") as file, TarWriter(file) as writer:
        for i, (key, image) in enumerate(images.items()):
            writer.write({"__key__": key, "webp": image, "cls": 10 + i, "json": {"a": 1}, "txt": "a bird"})
    samples, faults = read(tmp_path / "0.tar")
    assert (faults, [sample.label for sample in samples]) == ([], [10, 11, 12])
    data = (tmp_path / "0.tar").read_bytes()
    assert {s.key: data[s.span[0] : s.span[0] + s.span[1]] for s in samples} == images
    assert [sample.key for sample in samples] == list(images)


def test_keys_and_extensions_are_those_that_webdataset_finds(tmp_path: Path) -> None:
    members = [
        ("./a/b.c", b""),
        ("./a", b""),
        ("x/s1.JPG", b"image"),
        ("x/s1.seg.png", b"mask"),
        ("x/.s1.png", b"of a file manager"),
        ("README", b"text"),
        ("x/s1.cls", b" 7\n"),
        ("meta.json", b"{}"),
    ]
    path = write_tar(tmp_path / "0.tar", members)
    samples, faults = read(path)
    assert (faults, [(sample.key, sample.label) for sample in samples]) == ([], [("x/s1", 7)])


def test_names_too_long_for_a_plain_header_are_read(tmp_path: Path) -> None:
    key = "folder/" * 30 + "s1"
    samples, faults = read(write_tar(tmp_path / "0.tar", [(f"{key}.png", b"image"), (f"{key}.cls", b"1")]))
    assert (faults, [sample.key for sample in samples]) == ([], [key])
    start, size = samples[0].span
    assert (tmp_path / "0.tar").read_bytes()[start : start + size] == b"image"


def linked(kind: bytes) -> Change:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    return change


def sparse(info: tarfile.TarInfo) -> None:
    """Makes a file with holes, whose bytes are not contiguous in the tar."""
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1"}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("../s1.png", None, "leads out of the tar"),
        ("a/../../s1.png", None, "leads out of the tar"),
        ("/s1.png", None, "leads out of the tar"),
        ("..\\s1.png", None, "leads out of the tar"),
        ("s1.png", linked(tarfile.SYMTYPE), "is no regular file"),
        ("s1.png", linked(tarfile.LNKTYPE), "is no regular file"),
        ("s1.png", linked(tarfile.FIFOTYPE), "is no regular file"),
        ("s1.png", sparse, "is no regular file"),
        ("s1.pyd", None, "is a pickle"),
        ("s1.PKL", None, "is a pickle"),
        ("s1.meta.pth", None, "is a pickle"),
    ],
)
def test_members_that_lead_elsewhere_or_would_be_executed_are_faults(
    name: str, change: Change | None, message: str, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "0.tar", [(name, b"x"), ("s2.png", b"y"), ("s2.cls", b"0")], change)
    samples, (fault,) = read(path)
    assert fault.startswith(f"0.tar: {name!r} ")
    assert message in fault
    assert [sample.key for sample in samples] == ["s2"]


def test_samples_that_are_double_or_lack_something_are_all_told(tmp_path: Path) -> None:
    members = [("a.png", b"x"), ("a.jpg", b"x"), ("a.cls", b"0"), ("a.cls", b"1"), ("b.png", b"x"), ("c.cls", b"0")]
    members += [("d.png", b"x"), ("d.cls", b"cat"), ("e.png", b"x"), ("e.cls", b"1" * 600), ("f.png", b"x")]
    members += [("f.cls", b"1.0"), ("b.txt", b"")]
    assert told(write_tar(tmp_path / "0.tar", members)) == [
        "0.tar: sample 'a' has more than one image (a.png, a.jpg)",
        "0.tar: sample 'a' has more than one cls",
        "0.tar: sample 'b' has no cls; no sample uses b.png",
        "0.tar: sample 'c' has no image (png, jpg, jpeg, webp, tif, tiff, bmp, gif); no sample uses c.cls",
        "0.tar: sample 'd': cls is b'cat', expected a whole number",
        f"0.tar: sample 'e': cls is {b'1' * 17!r}, expected a whole number",
        "0.tar: sample 'f': cls is b'1.0', expected a whole number",
    ]


def test_a_compressed_tar_is_told_what_to_do(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("a.png", b"x"), ("a.cls", b"0")])
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert told(path) == ["0.tar: is compressed (gzip); unpack it to a plain tar, in which images can be read in place"]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    members = [(f"s{i}.{kind}", data) for i in range(4) for kind, data in (("png", b"x" * 700), ("cls", b"1"))]
    return write_tar(tmp_path / "0.tar", members)


@pytest.mark.parametrize("end", [2 * 512 + 100, 3 * 512, 5 * 512, 5 * 512 + 100, 7 * 512])
def test_a_tar_that_is_cut_off_is_told_wherever_the_cut_is(end: int, whole: Path) -> None:
    """A sample has 5 blocks: two headers, two blocks of the image and one of the label."""
    whole.write_bytes(whole.read_bytes()[:end])
    (fault,) = told(whole)
    assert "cut off" in fault or "is damaged" in fault


@pytest.mark.parametrize("damage", [b"\0" * 512, b"\xff" * 512])
def test_a_header_that_is_lost_in_the_middle_is_told(damage: bytes, whole: Path) -> None:
    data = bytearray(whole.read_bytes())
    data[10 * 512 : 11 * 512] = damage
    whole.write_bytes(data)
    assert told(whole) == ["0.tar: is damaged: after byte 5120 it has neither a readable member nor its end"]


@pytest.mark.parametrize("data", [b"", b"no tar " * 200])
def test_what_is_no_tar_is_told(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(data)
    (fault,) = told(tmp_path / "0.tar")
    assert fault.startswith("0.tar: no readable tar")


def test_a_member_of_negative_size_ends_the_reading(whole: Path) -> None:
    data = bytearray(whole.read_bytes())
    header = bytearray(data[5 * 512 : 6 * 512])
    header[124:136] = b"\xff" * 10 + (-1536 & 0xFFFF).to_bytes(2, "big")  # leads back to the previous member
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[5 * 512 : 6 * 512] = header
    whole.write_bytes(data)
    (fault,) = told(whole)
    assert fault == "0.tar: no readable tar, or cut off ('s1.png' has -1536 bytes)"
