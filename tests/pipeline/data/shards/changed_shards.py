"""Changes members of shards and updates manifest and index accordingly, so that no hash can find the change."""

import dataclasses
import hashlib
import tarfile
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from webdataset import TarWriter

from pipeline.data.prepare import write_manifest
from pipeline.data.shards.index import index_bytes, read_entries
from pipeline.data.shards.manifest import Manifest
from pipeline.storage import files

Members = list[tuple[str, bytes]]


def write_shard(manifest: Manifest, number: int, change: Callable[[Members], Members]) -> Manifest:
    """Replaces a shard by one with other members; the new sizes and hashes go into the manifest and its index."""
    shard = manifest.shards[number]
    path = Path(manifest.shard_uri(shard))
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    path.unlink()
    with open(path, "wb") as file, TarWriter(file, mtime=0) as writer:
        for name, data in change(members):
            key, _, member = name.partition(".")
            writer.write({"__key__": key, member: data})
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        spans = {key: list(group) for key, group in groupby(tar.getmembers(), lambda m: m.name.partition(".")[0])}
    uri = Path(manifest.uri).parent / "index.jsonl"
    entries = []
    for entry in read_entries(uri.read_bytes(), str(uri)):
        if entry.shard == shard.name:
            first, last = spans[entry.key][0], spans[entry.key][-1]
            length = last.offset_data + -(-last.size // 512) * 512 - first.offset
            own = hashlib.sha256(data[first.offset : first.offset + length]).hexdigest()
            image = next((member for member in spans[entry.key] if member.name.endswith(".png")), last)
            entry = dataclasses.replace(
                entry,
                offset=first.offset,
                length=length,
                sha256=own,
                image_offset=image.offset_data,
                image_length=image.size,
            )
        entries.append(entry)
    changed = dataclasses.replace(shard, bytes=len(data), sha256=files.file_sha256(path))
    shards = (*manifest.shards[:number], changed, *manifest.shards[number + 1 :])
    return write_manifest(dataclasses.replace(manifest, shards=shards), index_bytes(entries))


def replaced(name_ends: str, data: bytes) -> Callable[[Members], Members]:
    """Gives other content to the first member whose name has this ending."""

    def change(members: Members) -> Members:
        index = next(i for i, (name, _) in enumerate(members) if name.endswith(name_ends))
        return [*members[:index], (members[index][0], data), *members[index + 1 :]]

    return change
