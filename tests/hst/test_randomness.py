"""Draws are a function of their key and do not depend on the global generator."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from hst.randomness import derive_seed, generator, numpy_generator, python_generator, seeded


def test_seeds_are_a_function_of_the_key_and_stay_what_they_are() -> None:
    """The number is pinned: a restart with another Python or torch must find the same draws."""
    assert derive_seed(0, "vtab-dtd", "order", 3) == 7289166147494852605


def test_seeds_of_different_keys_differ() -> None:
    keys: list[tuple[Any, ...]] = [
        (0,),
        (1,),
        (0, "a"),
        (0, "a", 1),
        (0, "a1"),
        (0, "a", "1"),
        (0, 1, "a"),
        (0, "a,1"),
        (0, "", "a"),
    ]
    seeds = {derive_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_generator_does_not_depend_on_the_global_one() -> None:
    torch.manual_seed(1)
    first = torch.rand(4, generator=generator(0, "purpose", 7))
    torch.manual_seed(2)
    torch.rand(3)
    assert torch.equal(torch.rand(4, generator=generator(0, "purpose", 7)), first)
    assert not torch.equal(torch.rand(4, generator=generator(0, "purpose", 8)), first)


def test_pythons_and_numpys_draws_are_functions_of_the_key_and_stay_what_they_are() -> None:
    """The numbers are pinned: both libraries promise that these streams do not change."""
    random.seed(1)
    np.random.seed(1)
    for _ in range(2):
        assert python_generator(0, "purpose", 7).random() == 0.19195670284480304
        assert numpy_generator(0, "purpose", 7).random_sample() == 0.31305867746377614
    assert python_generator(0, "purpose", 8).random() == 0.5475294452626827
    assert random.random() == random.Random(1).random()
    assert np.random.random_sample() == np.random.RandomState(1).random_sample()


def test_seeded_restores_the_global_state_even_after_an_error() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    try:
        with seeded(0, "x"):
            inside = torch.rand(2)
            raise RuntimeError
    except RuntimeError:
        pass
    assert torch.equal(torch.rand(2), expected)
    with seeded(0, "x"):
        assert torch.equal(torch.rand(2), inside)
