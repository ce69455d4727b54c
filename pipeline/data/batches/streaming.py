"""Makes batches of uint8 images from shards. It knows nothing about models, Ray or what an augmentation does.

A split that fits in memory is kept there decoded, for all processes of the node; a sample is decoded when it is first
read. Other samples are read from the shards each time. The order is the same either way: `order.py` decides it before
anything is read.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from hst.preprocessing import Preprocessing
from hst.protocols import Targets
from pipeline.data.annotations.annotation import annotation_of
from pipeline.data.batches.decoded import DecodedSplit, open_decoded
from pipeline.data.batches.decoding import Decode, decode_into
from pipeline.data.batches.order import EpochOrder, sequential_order, shuffled_order
from pipeline.data.shards.index import load_index
from pipeline.data.shards.manifest import Manifest, load_manifest
from pipeline.data.shards.reader import ShardReader

MEMORY_LIMIT_BYTES = 4 << 30

AugmentImage = Callable[[bytes, int, int], torch.Tensor]
"""(an image file's bytes, the epoch from 0, its position in the epoch's order) -> uint8 (3, S, S).

It is called instead of `Preprocessing.pixels` for every image of a training epoch, in any thread or process and in any
order, and raises ValueError likewise. Its pixels differ from epoch to epoch and are not kept.
"""


@dataclass
class Batch:
    """A rank's part of one batch."""

    images: torch.Tensor
    """uint8 (b, 3, S, S), before normalisation and augmentation."""
    labels: Targets
    """The images' labels, as the annotation collates them; for classes int64 (b,)."""
    positions: torch.Tensor
    """int64 (b,): position of each sample in the order, for random draws that are keyed by it."""


def open_split(
    manifest_uri: str,
    preprocessing: Preprocessing,
    *,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    cached: bool = False,
) -> "Split":
    """Opens one split for reading.

    Args:
        manifest_uri: URI of the split's manifest file, local or s3://.
        preprocessing: Makes each image's pixels.
        memory_limit_bytes: A split whose decoded pixels take more is read from its shards in every epoch.
        cached: Shards on s3:// are copied whole into the local cache, once, instead of read by ranges in every epoch.

    Raises:
        DataError: There is no valid manifest or index.
    """
    return Split(
        load_manifest(manifest_uri),
        preprocessing,
        memory_limit_bytes=memory_limit_bytes,
        cached=cached,
    )


class Split:
    """The samples of one manifest."""

    def __init__(
        self,
        manifest: Manifest,
        preprocessing: Preprocessing,
        *,
        memory_limit_bytes: int,
        cached: bool,
    ) -> None:
        self.manifest = manifest
        self.preprocessing = preprocessing
        self._annotation = annotation_of(manifest.annotation)
        self._index = load_index(manifest)
        self._reader = ShardReader(manifest, self._index, cached=cached)
        self._sizes = [shard.num_samples for shard in manifest.shards]
        fits = manifest.num_samples * 3 * preprocessing.image_size**2 <= memory_limit_bytes
        self._decoded = open_decoded(manifest, self._index.counts, preprocessing) if fits else None

    @property
    def num_samples(self) -> int:
        """Number of samples, as the manifest counts them."""
        return self.manifest.num_samples

    def num_train_batches(self, batch_size: int) -> int:
        """Number of batches in a training epoch; the last, partial one is dropped."""
        return self.num_samples // min(batch_size, self.num_samples)

    def train_batches(
        self,
        *,
        epoch: int,
        batch_size: int,
        seed_key: tuple[int | str, ...],
        rank: int = 0,
        world: int = 1,
        start_batch: int = 0,
        augment: AugmentImage | None = None,
    ) -> Iterator[Batch]:
        """Yields a rank's contiguous slice of every batch of one epoch, from `start_batch` on.

        Args:
            epoch: Number of the epoch, from 0.
            batch_size: Batch size over all ranks; a smaller split uses its own size.
            seed_key: The seed, and whatever else the order must depend on (the task, for one).
            rank: This reader's number, from 0.
            world: Number of readers that share each batch. It does not change what batch k holds.
            start_batch: Number of batches of the epoch that are already done.
            augment: Makes the pixels of this epoch from the image files in the shards.

        Raises:
            DataError: A shard or a sample in it cannot be used.
        """
        _check_rank(rank, world, batch_size)
        size = min(batch_size, self.num_samples)
        count = self.num_train_batches(batch_size)
        if world > size:
            raise ValueError(f"a batch of {size} images cannot be split over {world} workers: use at most {size}")
        if not 0 <= start_batch <= count:
            raise ValueError(f"start_batch={start_batch}: the epoch has {count} batches")
        order = shuffled_order(self._sizes, seed_key, epoch)
        first, last = size * rank // world, size * (rank + 1) // world
        slices = [np.arange(k * size + first, k * size + last) for k in range(start_batch, count)]
        decode = None if augment is None else functools.partial(_augmented, augment, epoch)
        return self._batches(order, slices, decode)

    def eval_batches(self, *, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yields a rank's share of the split in batches of at most `batch_size` images.

        Over all ranks, every sample comes once. The shares differ by at most one sample, whatever the shards are. With
        more ranks than samples some shares are empty. Nothing here is collective, so no rank waits for another.

        Raises:
            DataError: A shard or a sample in it cannot be used, or their number is not the manifest's.
        """
        _check_rank(rank, world, batch_size)
        share = np.arange(self.num_samples * rank // world, self.num_samples * (rank + 1) // world)
        slices = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
        return self._batches(sequential_order(self._sizes), slices)

    def _batches(
        self, order: EpochOrder, slices: Sequence[np.ndarray], decode: Decode | None = None
    ) -> Iterator[Batch]:
        """Batches of the given positions (ascending). Samples in memory are taken from there, the others are read.

        With `decode`, all samples are read and none is kept.
        """
        kept = self._decoded if decode is None else None
        decode = decode or functools.partial(_whole, self.preprocessing)
        if kept is not None:
            return self._batches_of_kept(kept, order, slices, decode)
        return self._batches_read(order, slices, decode)

    def _batches_read(self, order: EpochOrder, slices: Sequence[np.ndarray], decode: Decode) -> Iterator[Batch]:
        """Reads every image and decodes it straight into its batch."""
        under_way: deque[np.ndarray] = deque()

        def rows() -> Iterator[np.ndarray]:
            for positions in slices:
                shape = (len(positions), 3, self.preprocessing.image_size, self.preprocessing.image_size)
                under_way.append(np.empty(shape, dtype=np.uint8))
                yield from under_way[-1]

        all_positions = np.concatenate(slices) if slices else np.empty(0, dtype=np.int64)
        with closing(decode_into(rows(), self._reader, decode, order, all_positions)) as done:
            for positions in slices:
                _take(done, len(positions))
                yield self._batch(under_way.popleft(), order, positions)
            next(done, None)  # lets decode_into check its count

    def _batches_of_kept(
        self, kept: DecodedSplit, order: EpochOrder, slices: Sequence[np.ndarray], decode: Decode
    ) -> Iterator[Batch]:
        """Takes the samples from memory, after decoding the missing ones into it."""
        missing = [positions[~kept.has(order.samples[positions])] for positions in slices]
        to_read = np.concatenate(missing) if missing else np.empty(0, dtype=np.int64)
        places = (kept.place(number) for number in order.samples[to_read].tolist())
        with closing(decode_into(places, self._reader, decode, order, to_read)) as done:
            for positions, absent in zip(slices, missing, strict=True):
                _take(done, len(absent))
                kept.mark(order.samples[absent])
                yield self._batch(kept.take(order.samples[positions]), order, positions)
            next(done, None)

    def _batch(self, images: np.ndarray, order: EpochOrder, positions: np.ndarray) -> Batch:
        labels = self._annotation.collate([self._index.labels[i] for i in order.samples[positions].tolist()])
        return Batch(torch.from_numpy(images), labels, torch.from_numpy(positions))


def _take(done: Iterator[int], count: int) -> None:
    """Waits for `count` samples."""
    for _ in range(count):
        next(done)


def _whole(preprocessing: Preprocessing, image: bytes, position: int) -> torch.Tensor:
    return preprocessing.pixels(image)


def _augmented(augment: AugmentImage, epoch: int, image: bytes, position: int) -> torch.Tensor:
    return augment(image, epoch, position)


def _check_rank(rank: int, world: int, batch_size: int) -> None:
    if not 0 <= rank < world:
        raise ValueError(f"rank={rank}, world={world}: expected a rank from 0 to below the world's size")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
