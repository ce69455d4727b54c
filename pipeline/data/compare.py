"""Compares shards with the raw data that they were written from, image by image.

Whether shards are up to date is decided by the names, sizes and dates of the source's files, without reading them
(`pipeline.data.prepare`). A file that was replaced by one of the same size and date is noticed here alone.
"""

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from pipeline.data.errors import few
from pipeline.data.samples import SourceSample
from pipeline.data.shards.index import load_index
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.reader import ShardReader
from pipeline.data.sources import Source


def differences(
    source: Source, manifests: Mapping[str, Manifest], *, progress: Callable[[int], None] | None = None
) -> list[str]:
    """Reads every image of the raw data and of its shards; returns a sentence for each kind of difference of a split.

    Args:
        source: Raw data, as `open_source` found it; without test, only train and val are compared.
        manifests: The shards' manifests by split.
        progress: Called after each sample of the shards, with 1.

    Raises:
        DataError: The shards are damaged.
        OSError: A file of the raw data cannot be read.
    """
    faults = []
    for split, samples in source.splits.items():
        manifest = manifests[split]
        missing = {sample.key: sample for sample in samples}
        changed, unknown = [], []
        for stored in ShardReader(manifest, load_index(manifest)).read(range(manifest.num_samples)):
            sample = missing.pop(stored.key, None)
            if sample is None:
                unknown.append(stored.key)
            elif sample.label != stored.label or not _is_image_of(sample, stored.image):
                changed.append(stored.key)
            if progress is not None:
                progress(1)
        left_out = set(manifest.source.get("skipped", ()))
        found = {
            "in the shards are not what the raw data has under their names": changed,
            "in the shards are not in the raw data": unknown,
            "in the raw data are not in the shards": [key for key in missing if key not in left_out],
        }
        faults += [f"{split}: {len(keys):,} image(s) {how}: {few(keys)}" for how, keys in found.items() if keys]
    return faults


def _is_image_of(sample: SourceSample, image: bytes) -> bool:
    if sample.pixels is None:
        return sample.read() == image
    with Image.open(io.BytesIO(image)) as decoded:  # another version of the encoder may write other bytes
        return np.array_equal(np.asarray(decoded), sample.pixels)
