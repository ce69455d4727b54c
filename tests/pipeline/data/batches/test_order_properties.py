"""Exact cover, exact order and exact resume, whatever the shards, ranks, readers, seeds and interruptions."""

import dataclasses
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hst.preprocessing import Preprocessing
from pipeline.data.batches.order import shuffled_order
from pipeline.data.batches.streaming import Split, open_split
from pipeline.data.prepare import write_manifest
from pipeline.data.samples import SourceSample
from pipeline.data.shards.index import index_bytes
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.writer import PlannedShard, observe, write_shards

SIZE = 4
shard_sizes = st.lists(st.integers(1, 7), min_size=1, max_size=5)


def split_of(sizes: Sequence[int], folder: Path, *, memory_limit_bytes: int) -> Split:
    """A split whose shards have these sizes; the red value of sample i is i."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "source").write_bytes(b"")
    numbers = iter(range(sum(sizes)))
    planned = []
    for shard, size in enumerate(sizes):
        samples = [
            SourceSample(f"train-{i:06d}", str(folder / "source"), i % 3, pixels=np.full((2, 2, 3), i, dtype=np.uint8))
            for i in (next(numbers) for _ in range(size))
        ]
        planned.append(PlannedShard(str(folder), f"train-{shard:06d}.tar", samples, "class", observe(samples)))
    written = list(write_shards(planned, threads=1))
    manifest = Manifest(
        task="vtab-tiny",
        split="train",
        class_names=("a", "b", "c"),
        source={},
        shards=tuple(shard.shard for shard in written if shard.shard is not None),
        indexes=(),
        uri=str(folder / "manifest.json"),
    )
    manifest = write_manifest(manifest, index_bytes(entry for shard in written for entry in shard.entries))
    return open_split(manifest.uri, Preprocessing(image_size=SIZE), memory_limit_bytes=memory_limit_bytes)


def epoch(split: Split, number: int, seed: int, batch_size: int, *, world: int = 1, start: int = 0) -> list[list[int]]:
    """The samples of each batch over all ranks, in the order of the ranks."""
    ranks = []
    for rank in range(world):
        batches = split.train_batches(
            epoch=number, batch_size=batch_size, seed_key=(seed, "order"), rank=rank, world=world, start_batch=start
        )
        ranks.append([batch.images[:, 0, 0, 0].tolist() for batch in batches])
    assert len({len(batches) for batches in ranks}) == 1, "a rank with more steps than another would wait for ever"
    return [list(chain(*parts)) for parts in zip(*ranks, strict=True)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=shard_sizes,
    seed=st.integers(0, 2**31),
    number=st.integers(0, 50),
    batch_size=st.integers(1, 9),
    worlds=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    kept=st.booleans(),
    data=st.data(),
)
def test_an_epoch_goes_on_exactly_after_any_interruptions_with_any_number_of_ranks(
    sizes: list[int],
    seed: int,
    number: int,
    batch_size: int,
    worlds: list[int],
    kept: bool,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("split")
    split = split_of(sizes, folder, memory_limit_bytes=(1 << 30) if kept else 0)
    size = min(batch_size, sum(sizes))
    batches = sum(sizes) // size
    worlds = [min(world, size) for world in worlds]
    expected = shuffled_order(sizes, (seed, "order"), number).samples.tolist()

    stops = sorted(data.draw(st.lists(st.integers(0, batches), max_size=len(worlds) - 1)))
    done: list[list[int]] = []
    for world, stop in zip(worlds, [*stops, *[batches] * (len(worlds) - len(stops))], strict=True):
        rest = epoch(split, number, seed, batch_size, world=world, start=len(done))
        done += rest[: stop - len(done)]
    assert done == [expected[k * size : (k + 1) * size] for k in range(batches)]
    assert len(set(chain(*done))) == batches * size


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=shard_sizes, batch_size=st.integers(1, 9), world=st.integers(1, 30), kept=st.booleans())
def test_an_evaluation_counts_every_sample_once_over_any_ranks(
    sizes: list[int], batch_size: int, world: int, kept: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    split = split_of(sizes, tmp_path_factory.mktemp("split"), memory_limit_bytes=(1 << 30) if kept else 0)
    found = [
        number
        for rank in range(world)
        for batch in split.eval_batches(batch_size=batch_size, rank=rank, world=world)
        for number in batch.images[:, 0, 0, 0].tolist()
    ]
    assert found == list(range(sum(sizes)))


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=30),
    window=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    number=st.integers(0, 1000),
)
def test_an_order_has_every_sample_once_and_holds_no_more_than_a_window(
    sizes: list[int], window: int, seed: int, number: int
) -> None:
    order = shuffled_order(sizes, (seed,), number, window=window)
    assert np.array_equal(np.sort(order.samples), np.arange(sum(sizes)))
    assert (np.abs(order.places - np.arange(sum(sizes))) < window).all()
    again = shuffled_order(sizes, (seed,), number, window=window)
    assert all(
        np.array_equal(a, b) for a, b in zip(dataclasses.astuple(order), dataclasses.astuple(again), strict=True)
    )
