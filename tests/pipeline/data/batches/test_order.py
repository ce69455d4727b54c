"""The order of an epoch."""

import numpy as np
import pytest

from pipeline.data.batches.order import sequential_order, shuffled_order

RECORDED = [8, 9, 1, 4, 2, 7, 5, 0, 3, 6]
RECORDED_IN_WINDOWS = [1, 2, 0, 4, 5, 3, 8, 7, 6, 9]
SIZES = (5, 1, 7, 4, 3)


@pytest.mark.parametrize("window", [1, 4, 7, 20, 4096])
def test_every_sample_has_one_position(window: int) -> None:
    order = shuffled_order(SIZES, (0, "task"), 3, window=window)
    for numbers in (order.places, order.samples):
        assert sorted(numbers.tolist()) == list(range(20))
    assert sorted(order.shards.tolist()) == list(range(5))


@pytest.mark.parametrize("window", [4, 4096])
def test_a_place_is_where_the_sample_comes_when_the_shards_are_read_in_their_order(window: int) -> None:
    order = shuffled_order(SIZES, (0,), 0, window=window)
    first = np.concatenate([[0], np.cumsum(SIZES)])
    read = [sample for shard in order.shards for sample in range(first[shard], first[shard + 1])]
    assert [read[place] for place in order.places] == order.samples.tolist()


def test_no_sample_leaves_its_window_so_that_reads_stay_sequential() -> None:
    order = shuffled_order(SIZES, (0,), 0, window=4)
    assert (order.places // 4 == np.arange(20) // 4).all()
    assert order.shards.tolist() != list(range(5))


def test_the_order_is_a_function_of_key_and_epoch() -> None:
    def order(key: tuple[int | str, ...], epoch: int) -> list[int]:
        return shuffled_order((50, 50), key, epoch).samples.tolist()

    assert order((1, "a"), 0) == order((1, "a"), 0)
    different = [order((1, "a"), 0), order((1, "a"), 1), order((2, "a"), 0), order((1, "b"), 0)]
    assert len({tuple(numbers) for numbers in different}) == 4


def test_the_order_stays_what_it_was() -> None:
    """The order is recorded, because an older checkpoint must resume in the same epoch."""
    assert shuffled_order((4, 6), (0, "vtab-dtd"), 0).samples.tolist() == RECORDED
    assert shuffled_order((4, 6), (0, "vtab-dtd"), 0, window=3).samples.tolist() == RECORDED_IN_WINDOWS


def test_a_split_that_fits_a_window_has_one_order_however_it_is_cut() -> None:
    cuts = [(20,), (5, 15), SIZES]
    assert len({tuple(shuffled_order(cut, (0,), 1).samples.tolist()) for cut in cuts}) == 1


def test_positions_of_samples_are_spread_evenly() -> None:
    mean = np.mean([shuffled_order((20,), (0,), epoch).samples for epoch in range(400)], axis=0)
    assert abs(mean - 9.5).max() < 1.5  # five standard errors


def test_evaluation_reads_in_the_order_of_the_files() -> None:
    order = sequential_order(SIZES)
    assert order.samples.tolist() == order.places.tolist() == list(range(20))


def test_a_key_without_a_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a whole number"):
        shuffled_order((3,), ("task",), 0)
