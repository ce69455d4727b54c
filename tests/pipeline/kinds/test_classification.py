"""What classification says against its own results."""

from __future__ import annotations

import math

import pytest

from pipeline.kinds.classification import Classification

CATS_AND_DOGS = ("cat", "dog")


def doubts(counts: list[list[int]], train_loss: float, class_names: tuple[str, ...] = CATS_AND_DOGS) -> list[str]:
    return Classification().doubts({"confusion": counts}, class_names, train_loss)


@pytest.mark.parametrize("train_loss", [0.01, math.log(2)])
def test_one_class_for_everything_is_told_whatever_the_loss(train_loss: float) -> None:
    assert doubts([[0, 12], [0, 12]], train_loss) == ["'dog' is predicted for all 24 images"]
    assert doubts([[9, 0, 0], [1, 0, 0], [2, 0, 0]], train_loss, ("a", "b", "c")) == [
        "'a' is predicted for all 12 images"
    ]


@pytest.mark.parametrize("counts", [[[6, 6], [6, 6]], [[5, 7], [6, 6]], [[80, 10], [10, 0]]])
def test_chance_on_val_beside_a_training_loss_near_0_is_told(counts: list[list[int]]) -> None:
    (doubt,) = doubts(counts, 0.017)
    assert "no more than by chance" in doubt
    assert "the training loss is 0.017" in doubt
    assert doubts(counts, 0.5) == [], "the task may be hard, and nothing was learned by heart"


@pytest.mark.parametrize("counts", [[[12, 0], [0, 12]], [[9, 3], [3, 9]], [[24, 0], [0, 0]]])
def test_what_was_learned_is_not_doubted(counts: list[list[int]]) -> None:
    """In the last case the split has one class only, so that nothing else could be predicted."""
    assert doubts(counts, 0.017) == []
