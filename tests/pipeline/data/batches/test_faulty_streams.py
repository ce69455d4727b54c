"""An epoch from a real S3 server through a proxy that breaks answers: every sample once, or a clear error."""

import os
import random
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hst.preprocessing import Preprocessing
from pipeline.data.batches.streaming import Split, open_split
from pipeline.data.errors import DataError
from pipeline.data.prepare import prepare_task
from pipeline.data.shards.manifest import Manifest
from pipeline.storage import resuming
from pipeline.storage.files import StorageError
from pipeline.tasks.catalogue import Task
from tests.pipeline.fault_proxy import Fault, FaultProxy

NUM_SAMPLES = 60
KINDS = ("status", "reset", "cut", "stall")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], FaultProxy]]:
    """Puts a proxy between the reader and the server after the shards are written."""
    made: list[FaultProxy] = []

    def make() -> FaultProxy:
        made.append(FaultProxy(urlsplit(os.environ["AWS_ENDPOINT_URL"]).port or 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made[0].port}")
        return made[0]

    monkeypatch.setattr(resuming, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(resuming, "READ_TIMEOUT_S", 2.0)
    yield make
    for one in made:
        one.close()


@pytest.fixture
def on_s3(s3_folder: Path, make_lists: Callable[..., Path], task: Task) -> dict[str, Manifest]:
    return prepare_task(task, str(make_lists(test=NUM_SAMPLES)), "s3://bucket/shards", samples_per_shard=16)


def opened(manifest: Manifest) -> Split:
    return open_split(manifest.uri, Preprocessing(image_size=8), memory_limit_bytes=0)


def numbers(split: Split, *, world: int = 1) -> list[int]:
    ranks = (split.eval_batches(batch_size=7, rank=rank, world=world) for rank in range(world))
    return [number for batch in chain(*ranks) for number in batch.images[:, 0, 0, 0].tolist()]


@pytest.mark.parametrize("seed", range(4))
def test_an_epoch_through_faults_has_every_sample_once(
    seed: int, on_s3: dict[str, Manifest], proxy: Callable[[], FaultProxy]
) -> None:
    """Faults at chosen requests and bytes. If some bytes arrive in between, faults do not count as in a row."""
    draws = random.Random(seed)
    between = proxy()
    split = opened(on_s3["test"])
    plan: list[Fault | None] = []
    for _ in range(12):
        kind = draws.choice(KINDS)
        plan += [Fault(kind, 0 if kind == "status" else draws.randrange(1, 30_000), draws.choice((500, 503))), None]
    between.plan = plan
    assert numbers(split, world=3) == list(range(NUM_SAMPLES))
    assert len(between.plan) < 20, "the faults were not met"


def test_a_rank_asks_for_the_bytes_of_its_own_samples_alone(
    on_s3: dict[str, Manifest], proxy: Callable[[], FaultProxy]
) -> None:
    between = proxy()
    split = opened(on_s3["test"])
    between.requests.clear()
    list(split.eval_batches(batch_size=7, rank=1, world=3))
    assert between.served() == 20 * 2048


def test_a_server_that_never_answers_ends_the_epoch_with_a_clear_error(
    on_s3: dict[str, Manifest], proxy: Callable[[], FaultProxy]
) -> None:
    between = proxy()
    split = opened(on_s3["test"])
    between.plan = [Fault("status", 0, 503)] * 1000
    with pytest.raises(StorageError, match=r"s3://bucket/shards/vtab-tiny/test/test-00000\d.tar.*503.*given up after"):
        numbers(split)
    assert len(between.plan) > 900


def test_a_refusal_is_not_tried_again(on_s3: dict[str, Manifest], proxy: Callable[[], FaultProxy]) -> None:
    between = proxy()
    split = opened(on_s3["test"])
    between.plan = [Fault("status", 0, 403)] * 100
    with pytest.raises(StorageError, match=r"403.*are the credentials right"):
        numbers(split)
    assert len(between.plan) > 80, "one request for each of the runs that were under way"


def test_bytes_that_changed_on_the_server_are_named(on_s3: dict[str, Manifest], s3_folder: Path) -> None:
    split = opened(on_s3["test"])
    path = s3_folder / "bucket/shards/vtab-tiny/test/test-000002.tar"
    data = bytearray(path.read_bytes())
    data[3 * 2048 + 700] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"s3://bucket/.*/test-000002.tar: sample 'test-000035-images-test35'"):
        numbers(split)
