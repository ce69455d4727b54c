"""Batches: exact cover and order for any ranks, workers and memory, and no silent loss."""

import threading
from collections.abc import Callable, Iterable
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch

from hst.preprocessing import Preprocessing
from pipeline.data.batches import decoding
from pipeline.data.batches.streaming import Batch, Split, open_split
from pipeline.data.errors import DataError
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.reader import EncodedSample, ShardReader
from pipeline.data.sources import open_source
from pipeline.tasks.catalogue import Task
from tests.pipeline.data.shards.changed_shards import replaced, write_shard

MakeShards = Callable[..., dict[str, Manifest]]
PREPROCESSING = Preprocessing(image_size=8)
KEY = (0, "vtab-tiny")


def numbers(batches: Iterable[Batch]) -> list[list[int]]:
    """The number of each image: conftest paints image i in the colour (i % 256, i // 256, split)."""
    result = []
    for batch in batches:
        red, green = batch.images[:, 0, 0, 0].int(), batch.images[:, 1, 0, 0].int()
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[1:] == (3, 8, 8)
        assert batch.labels.tolist() == [number % 3 for number in (red + 256 * green).tolist()]
        result.append((red + 256 * green).tolist())
    return result


def flat(batches: Iterable[Batch]) -> list[int]:
    return [number for batch in numbers(batches) for number in batch]


def streamed(manifest: Manifest) -> Split:
    return open_split(manifest.uri, PREPROCESSING, memory_limit_bytes=0)


def test_an_epoch_holds_each_sample_once_in_full_batches(make_shards: MakeShards) -> None:
    split = open_split(make_shards(train=23)["train"].uri, PREPROCESSING)
    batches = list(split.train_batches(epoch=0, batch_size=5, seed_key=KEY))
    assert [len(batch.labels) for batch in batches] == [5] * 4
    assert len(batches) == split.num_train_batches(5)
    assert len(set(flat(batches))) == 20
    assert [position for batch in batches for position in batch.positions.tolist()] == list(range(20))
    assert split.num_samples == 23


def test_the_order_is_the_same_from_memory_and_streamed(make_shards: MakeShards) -> None:
    manifest = make_shards(train=70, samples_per_shard=9)["train"]
    kept = open_split(manifest.uri, PREPROCESSING)
    read = streamed(manifest)
    for epoch in range(3):
        order = numbers(kept.train_batches(epoch=epoch, batch_size=8, seed_key=KEY))
        assert numbers(read.train_batches(epoch=epoch, batch_size=8, seed_key=KEY)) == order
    assert flat(kept.train_batches(epoch=0, batch_size=8, seed_key=KEY)) != flat(
        kept.train_batches(epoch=1, batch_size=8, seed_key=KEY)
    )


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_batch_k_holds_the_same_samples_for_any_number_of_ranks(world: int, make_shards: MakeShards) -> None:
    manifest = make_shards(train=23)["train"]
    alone = numbers(streamed(manifest).train_batches(epoch=2, batch_size=7, seed_key=KEY))
    ranks = [
        list(streamed(manifest).train_batches(epoch=2, batch_size=7, seed_key=KEY, rank=rank, world=world))
        for rank in range(world)
    ]
    assert [[*chain(*parts)] for parts in zip(*map(numbers, ranks), strict=True)] == alone
    for parts in zip(*ranks, strict=True):
        positions = torch.cat([part.positions for part in parts])
        assert (positions.diff() == 1).all()


@pytest.mark.parametrize("memory_limit_bytes", [0, 1 << 30])
def test_an_epoch_goes_on_where_it_was_left(memory_limit_bytes: int, make_shards: MakeShards) -> None:
    manifest = make_shards(train=23)["train"]
    split = open_split(manifest.uri, PREPROCESSING, memory_limit_bytes=memory_limit_bytes)
    whole = numbers(split.train_batches(epoch=1, batch_size=4, seed_key=KEY))
    for start in range(6):
        again = open_split(manifest.uri, PREPROCESSING, memory_limit_bytes=memory_limit_bytes)
        rest = list(again.train_batches(epoch=1, batch_size=4, seed_key=KEY, start_batch=start))
        assert numbers(rest) == whole[start:]
        if rest:
            assert rest[0].positions[0] == 4 * start


def test_a_split_smaller_than_the_batch_is_one_batch(make_shards: MakeShards) -> None:
    split = open_split(make_shards(train=12)["train"].uri, PREPROCESSING)
    (batch,) = split.train_batches(epoch=0, batch_size=64, seed_key=KEY)
    assert sorted(flat([batch])) == list(range(12))


@pytest.mark.parametrize("samples_per_shard", [1, 2, 5, 100])
@pytest.mark.parametrize("world", [1, 2, 3, 5, 11])
def test_evaluation_covers_every_sample_once_over_all_ranks(
    world: int, samples_per_shard: int, make_shards: MakeShards
) -> None:
    """The cases have uneven shards, fewer shards than ranks, and fewer samples than ranks."""
    manifest = make_shards(test=9, samples_per_shard=samples_per_shard)["test"]
    shares = [flat(streamed(manifest).eval_batches(batch_size=2, rank=r, world=world)) for r in range(world)]
    assert sorted(chain(*shares)) == list(range(9))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_rank_opens_only_the_shards_that_hold_its_share(make_shards: MakeShards, tmp_path: Path) -> None:
    manifest = make_shards(test=9, samples_per_shard=3)["test"]
    (tmp_path / "shards/vtab-tiny/test/test-000002.tar").unlink()
    assert flat(streamed(manifest).eval_batches(batch_size=2, rank=0, world=3)) == [0, 1, 2]


def test_the_trainval_split_is_train_and_val_together(make_shards: MakeShards) -> None:
    manifests = make_shards(train=12, val=6)
    batches = list(open_split(manifests["trainval"].uri, PREPROCESSING).eval_batches(batch_size=64))
    assert [len(batch.labels) for batch in batches] == [18]
    assert numbers(batches) == [[*range(12), *range(6)]]
    assert batches[0].images[:, 2, 0, 0].tolist() == [0] * 12 + [1] * 6


def test_the_pixels_are_the_recipes_pixels(make_shards: MakeShards, tmp_path: Path, task: Task) -> None:
    split = open_split(make_shards()["test"].uri, PREPROCESSING)
    (batch,) = split.eval_batches(batch_size=64)
    samples = open_source(str(tmp_path / "raw"), task).splits["test"]
    assert torch.equal(batch.images, torch.stack([PREPROCESSING.pixels(sample.path) for sample in samples]))


def test_images_in_memory_are_not_decoded_again(make_shards: MakeShards, tmp_path: Path) -> None:
    split = open_split(make_shards(train=12)["train"].uri, PREPROCESSING)
    list(split.train_batches(epoch=0, batch_size=6, seed_key=KEY))
    for path in (tmp_path / "shards").rglob("*.tar"):
        path.unlink()
    assert sorted(flat(split.train_batches(epoch=1, batch_size=6, seed_key=KEY))) == list(range(12))


def test_a_sample_that_was_dropped_from_one_epoch_is_read_in_a_later_one(make_shards: MakeShards) -> None:
    split = open_split(make_shards(train=13)["train"].uri, PREPROCESSING)
    seen = set()
    for epoch in range(8):
        seen |= set(flat(split.train_batches(epoch=epoch, batch_size=6, seed_key=KEY)))
    assert seen == set(range(13))


def test_a_changed_batch_does_not_change_what_is_in_memory(make_shards: MakeShards) -> None:
    split = open_split(make_shards(train=12)["train"].uri, PREPROCESSING)
    for _ in range(2):
        for batch in split.eval_batches(batch_size=6):
            batch.images.zero_()
            batch.labels.zero_()
    assert flat(split.eval_batches(batch_size=6)) == list(range(12))


def test_a_split_over_the_limit_is_not_kept_in_memory(make_shards: MakeShards, tmp_path: Path) -> None:
    manifest = make_shards(train=12)["train"]
    split = open_split(manifest.uri, PREPROCESSING, memory_limit_bytes=12 * 3 * 8 * 8 - 1)
    list(split.eval_batches(batch_size=6))
    (tmp_path / "shards/vtab-tiny/train/train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"train-000001.tar: no such shard"):
        list(split.eval_batches(batch_size=6))


def damage_bit(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[600] ^= 1
    return bytes(changed)


def zero_header(data: bytes) -> bytes:
    return data[:1024] + bytes(512) + data[1536:]


def cut_at_member(data: bytes) -> bytes:
    # The first sample is a label and an image; each has a header and padded content.
    return data[:1024] + data[1024 : 1024 + 512 + 512]


@pytest.mark.parametrize("memory_limit_bytes", [0, 1 << 30])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_bit, r"sample 'test-000003-images-test3': its 2048 bytes have the sha256"),
        (zero_header, r"sample 'test-000003-images-test3': its 2048 bytes have the sha256"),
        (cut_at_member, r"has \d+ bytes, its manifest says"),
        (lambda data: data[:-1], r"has \d+ bytes, its manifest says"),
        (lambda data: b"", "has 0 bytes, its manifest says"),
    ],
)
def test_a_damaged_shard_is_an_error_that_names_it(
    damage: Callable[[bytes], bytes],
    message: str,
    memory_limit_bytes: int,
    make_shards: MakeShards,
    tmp_path: Path,
) -> None:
    manifest = make_shards(test=9, samples_per_shard=3)["test"]
    path = tmp_path / "shards/vtab-tiny/test/test-000001.tar"
    path.write_bytes(damage(path.read_bytes()))
    split = open_split(manifest.uri, PREPROCESSING, memory_limit_bytes=memory_limit_bytes)
    batches = split.eval_batches(batch_size=1)
    with pytest.raises(DataError, match=rf"test-000001.tar: {message}"):
        flat(islice(batches, 4))


@pytest.mark.parametrize("memory_limit_bytes", [0, 1 << 30])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda samples: samples[:-1], "8 samples came, 9 were asked for"),
        (lambda samples: [], "0 samples came, 9 were asked for"),
        (lambda samples: samples[1:], "'test-000001-images-test1' came where 'test-000000-images-test0' was asked"),
        (lambda samples: [samples[0], *samples], "'test-000000-images-test0' came where 'test-000001-images-test1'"),
        (lambda samples: [*samples[:7], samples[8], samples[7]], "'test-000008-images-test8' came where"),
    ],
)
def test_a_reader_that_gives_other_samples_than_asked_for_is_never_a_shorter_epoch(
    change: Callable[[list[EncodedSample]], list[EncodedSample]],
    message: str,
    memory_limit_bytes: int,
    make_shards: MakeShards,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split = open_split(make_shards(test=9)["test"].uri, PREPROCESSING, memory_limit_bytes=memory_limit_bytes)
    read = ShardReader.read
    monkeypatch.setattr(ShardReader, "read", lambda reader, numbers: iter(change(list(read(reader, numbers)))))
    with pytest.raises(DataError, match=message):
        list(split.eval_batches(batch_size=4))


@pytest.mark.parametrize("memory_limit_bytes", [0, 1 << 30])
def test_samples_that_come_out_of_turn_are_no_batch(
    memory_limit_bytes: int, make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = open_split(make_shards(test=9)["test"].uri, PREPROCESSING, memory_limit_bytes=memory_limit_bytes)
    encoded = decoding._encoded_samples
    monkeypatch.setattr(decoding, "_encoded_samples", lambda *of: iter(list(encoded(*of))[::-1]))
    with pytest.raises(DataError, match="position 8 of the order came out of turn"):
        list(split.eval_batches(batch_size=4))


def test_a_shard_that_changes_between_epochs_is_an_error(make_shards: MakeShards, tmp_path: Path) -> None:
    split = streamed(make_shards(test=9, samples_per_shard=3)["test"])
    assert len(flat(split.eval_batches(batch_size=4))) == 9
    path = tmp_path / "shards/vtab-tiny/test/test-000002.tar"
    path.write_bytes(damage_bit(path.read_bytes()))
    with pytest.raises(DataError, match=r"test-000002.tar: sample 'test-000006-images-test6': its 2048 bytes"):
        list(split.eval_batches(batch_size=4))


def test_damage_behind_a_ranks_share_does_not_stop_that_rank(make_shards: MakeShards, tmp_path: Path) -> None:
    """A rank reads only the bytes of its own samples."""
    manifest = make_shards(test=9, samples_per_shard=9)["test"]
    path = tmp_path / "shards/vtab-tiny/test/test-000000.tar"
    data = path.read_bytes()
    path.write_bytes(data[: 5 * 2048] + bytes(len(data) - 5 * 2048))
    assert flat(streamed(manifest).eval_batches(batch_size=2, rank=0, world=2)) == [0, 1, 2, 3]
    with pytest.raises(DataError, match="sample 'test-000005-images-test5'"):
        flat(streamed(manifest).eval_batches(batch_size=2, rank=1, world=2))


@pytest.mark.parametrize("image", [b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_an_image_that_cannot_be_read_is_named_with_its_shard(image: bytes, make_shards: MakeShards) -> None:
    manifest = make_shards(test=9, samples_per_shard=3)["test"]
    write_shard(manifest, 1, replaced(".png", image))
    message = r"^[^\n]*test-000001.tar: sample 'test-000003-images-test3': .*not a readable image"
    with pytest.raises(DataError, match=message):
        list(streamed(manifest).eval_batches(batch_size=4))


def test_an_iteration_that_is_left_early_leaves_no_thread_behind(make_shards: MakeShards) -> None:
    batches = streamed(make_shards(train=70)["train"]).train_batches(epoch=0, batch_size=4, seed_key=KEY)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world": 2}, "rank=2, world=2"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"world": 7, "batch_size": 4}, "a batch of 4 images cannot be split over 7 workers"),
        ({"start_batch": 4}, "start_batch=4: the epoch has 3 batches"),
    ],
)
def test_impossible_reading_is_refused_at_once(options: dict[str, int], message: str, make_shards: MakeShards) -> None:
    split = open_split(make_shards(train=12)["train"].uri, PREPROCESSING)
    with pytest.raises(ValueError, match=message):
        split.train_batches(**{"epoch": 0, "batch_size": 4, "seed_key": KEY, **options})  # type: ignore[arg-type]


def test_reading_uses_no_global_random_state(make_shards: MakeShards) -> None:
    split = streamed(make_shards(train=12)["train"])
    torch.manual_seed(0)
    np.random.seed(0)
    first = flat(split.train_batches(epoch=0, batch_size=4, seed_key=KEY))
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.random.get_rng_state()
    assert flat(split.train_batches(epoch=0, batch_size=4, seed_key=KEY)) == first
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_split_that_was_never_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest .* never written"):
        open_split(str(tmp_path / "manifest.json"), PREPROCESSING)
