"""Finds the labels and the positions of the images in a foreign WebDataset tar, without reading the images.

Members are named `<key>.<extension>`. An image (`IMAGE_MEMBERS`) and `cls` (an ASCII integer) of one key make a
sample (`pipeline.data.raw.tar_members`); members of other kinds are ignored.
"""

import re
import tarfile
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.data.raw.tar_members import Span, TarMembers
from pipeline.data.samples import Listing

# WebDataset and similar readers unpickle these, which can execute code.
_EXECUTED = ("pyd", "pkl", "pickle", "pth", "pt")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BLOCK = 512
_MAX_LABEL_BYTES = 16


@dataclass(frozen=True)
class TarSample:
    """A labelled image in a tar."""

    key: str
    span: Span
    label: int


def read_tar(path: str, name: str, listing: Listing) -> list[TarSample]:
    """The samples of a tar, in its order.

    Args:
        path: Local path of the tar.
        name: Name of the tar, for faults.
        listing: Gets all faults of the tar, and the members that are left aside.
    """
    faults, members = listing.faults, TarMembers(name, listing)
    with open(path, "rb") as file:
        start = file.read(8)
        compression = next((kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)), None)
        if compression:
            faults.append(
                f"{name}: is compressed ({compression}); unpack it to a plain tar, in which images can be read in place"
            )
            return []
        file.seek(0)
        try:
            end = _read_members(file, name, members, faults)
        except (tarfile.TarError, ValueError, EOFError) as error:
            faults.append(f"{name}: no readable tar, or cut off ({error})")
            return []
        fault = _fault_of_end(file, end)
        if fault:
            faults.append(f"{name}: {fault}")
            return []
        samples = []
        for key, sample in members.samples().items():
            text = _read_span(file, sample.labels[0][1])
            if re.fullmatch(rb"\s*-?[0-9]{1,9}\s*", text):
                samples.append(TarSample(key, sample.images[0][1], int(text)))
            else:
                faults.append(f"{name}: sample {key!r}: cls is {text!r}, expected a whole number")
    return samples


def _read_members(file: BinaryIO, name: str, members: TarMembers, faults: list[str]) -> int:
    """Adds the members that may be read; returns the position where the last one ends."""
    end = 0
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.size < 0:
                raise ValueError(f"{member.name!r} has {member.size} bytes")  # tarfile would loop forever
            end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
            fault = _fault_of_member(member)
            if fault:
                faults.append(f"{name}: {member.name!r} {fault}")
            elif not member.isdir():
                members.add(member.name, (member.offset_data, member.size))
    return end


def _fault_of_member(member: tarfile.TarInfo) -> str | None:
    if member.name.startswith("/") or ".." in member.name.split("/") or "\\" in member.name:
        return "leads out of the tar"
    if not (member.isreg() or member.isdir()) or member.issparse():
        return "is no regular file (a link, a device or the like)"
    if member.name.lower().rpartition(".")[2] in _EXECUTED:
        return f"is a pickle, which can execute code when it is read ({', '.join(_EXECUTED)})"
    return None


def _fault_of_end(file: BinaryIO, end: int) -> str | None:
    """The fault of a tar that does not end with blocks of zeros: it was cut off, or tarfile skipped something."""
    file.seek(end)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        return "is cut off: it has no end mark"
    while block:
        if block.strip(b"\0"):
            return f"is damaged: after byte {end} it has neither a readable member nor its end"
        block = file.read(1 << 20)
    return None


def _read_span(file: BinaryIO, span: Span) -> bytes:
    file.seek(span[0])
    return file.read(min(span[1], _MAX_LABEL_BYTES + 1))
