"""Augmentation of batches equals timm's with the same draws, and does not depend on a worker's slice of a batch."""

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.mixup import FastCollateMixup
from timm.data.random_erasing import RandomErasing

from hst.preprocessing import Preprocessing
from hst.randomness import derive_seed, generator, numpy_generator, python_generator
from pipeline.data.batches.streaming import Batch
from pipeline.kinds.batch_augmentation import BatchAugmentation, draw_erased
from pipeline.tasks.recipe import Recipe
from pipeline.training.workers import Workers

SIZE = 32
PREPROCESSING = Preprocessing(image_size=SIZE, mean=(0.4, 0.5, 0.6))
ALL: dict[str, Any] = {
    "mixup": 0.8,
    "cutmix": 1.0,
    "random_erasing": 0.5,
    "horizontal_flip": 0.5,
    "label_smoothing": 0.1,
}


def whole_batch(size: int = 8, number: int = 0) -> Batch:
    draws = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (size, 3, SIZE, SIZE), dtype=torch.uint8, generator=draws)
    return Batch(images, torch.randint(0, 5, (size,), generator=draws), torch.arange(size) + number * size)


def augmentation(size: int = 8, *, epoch: int = 1, **recipe: Any) -> BatchAugmentation:
    return BatchAugmentation(
        recipe=Recipe(**recipe),
        preprocessing=PREPROCESSING,
        num_classes=5,
        seed=3,
        task="task",
        epoch=epoch,
        batch_size=size,
        workers=Workers(),
        dtype=torch.float32,
    )


def pixels_of(images: torch.Tensor) -> torch.Tensor:
    """Undoes normalisation."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    return ((images * std + mean) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_everything_off_images_are_normalised_and_labels_stay_labels(dtype: torch.dtype) -> None:
    batch = whole_batch()
    plain = dataclasses.replace(augmentation(label_smoothing=0.1), dtype=dtype)
    images, targets = plain(batch)
    assert torch.equal(images, PREPROCESSING.normalize(batch.images, dtype))
    assert torch.equal(targets, batch.labels)


@pytest.mark.parametrize("alphas", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
@pytest.mark.parametrize("size", [8, 7])
def test_mixing_is_that_of_timms_training_with_the_same_draws_bit_for_bit(alphas: dict[str, Any], size: int) -> None:
    reference = FastCollateMixup(
        mixup_alpha=alphas.get("mixup", 0.0),
        cutmix_alpha=alphas.get("cutmix", 0.0),
        label_smoothing=0.1,
        num_classes=5,
    )
    for number in range(30):
        batch = whole_batch(size, number)
        images, targets = augmentation(size, label_smoothing=0.1, **alphas)(batch)
        np.random.set_state(numpy_generator(3, "task", "mix", 1, number).get_state())
        pairs = [(image.numpy(), int(label)) for image, label in zip(batch.images, batch.labels, strict=True)]
        if size % 2:  # timm requires an even number, its formula does not: the middle image is its own partner
            lam = reference._mix_batch_collate(mixed := torch.zeros_like(batch.images), pairs)
            assert torch.equal(images, PREPROCESSING.normalize(mixed))
            assert 0 <= lam <= 1
            continue
        mixed, soft = reference(pairs)
        assert torch.equal(images, PREPROCESSING.normalize(mixed))
        assert torch.equal(targets, soft)
        torch.testing.assert_close(targets.sum(1), torch.ones(size))


def test_both_kinds_of_mixing_take_about_half_the_batches_each() -> None:
    kinds = [augmentation(mixup=0.8, cutmix=1.0)._draw_mix(number, SIZE)[1] is None for number in range(400)]
    assert 160 < sum(kinds) < 240


def test_random_erasing_is_timms_with_the_same_draws_bit_for_bit() -> None:
    batch = whole_batch(64)
    images, _ = augmentation(64, random_erasing=0.5)(batch)
    reference = RandomErasing(probability=0.5, mode="pixel", device="cpu")
    for position, image in enumerate(PREPROCESSING.normalize(batch.images)):
        random.seed(derive_seed(3, "task", "random_erasing", 1, position))
        torch.set_rng_state(generator(3, "task", "random_erasing noise", 1, position).get_state())
        assert torch.equal(images[position], reference(image))
    untouched = (pixels_of(images) == batch.images).flatten(1).all(1)
    assert 16 < int(untouched.sum()) < 48


@pytest.mark.parametrize("size", [1, 2, 3, 32, 224])
def test_what_is_erased_lies_inside_the_image_and_is_smaller(size: int) -> None:
    for seed in range(200):
        rectangle = draw_erased(size, random.Random(seed))
        for side in rectangle or ():
            assert 0 <= side.start <= side.stop <= size
            assert side.stop - side.start < size


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.5, 32), (1.0, 64)])
def test_a_share_of_the_images_is_mirrored(share: float, expected: int) -> None:
    batch = whole_batch(64)
    pixels = pixels_of(augmentation(64, horizontal_flip=share)(batch)[0])
    mirrored = [bool(torch.equal(a, b.flip(2))) for a, b in zip(pixels, batch.images, strict=True)]
    kept = [bool(torch.equal(a, b)) for a, b in zip(pixels, batch.images, strict=True)]
    assert [not m for m in mirrored] == kept
    assert abs(sum(mirrored) - expected) <= (12 if 0 < share < 1 else 0)
    draws = [python_generator(3, "task", "horizontal_flip", 1, p).random() for p in range(64)]
    assert mirrored == [draw < share for draw in draws]


@pytest.mark.usefixtures("untouched_global_generators")
@pytest.mark.parametrize("number", range(6))
def test_a_slice_of_a_batch_is_augmented_as_within_the_whole(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {**ALL, "random_erasing": 1.0}
    whole = whole_batch(10, number)
    images, targets = augmentation(10, **recipe)(whole)
    mirrored = pixels_of(augmentation(10, horizontal_flip=0.5)(whole)[0])

    def gather(_: Workers, rows: torch.Tensor, own: slice, total: int) -> torch.Tensor:
        """Stands in for workers that together have this batch."""
        of_all = mirrored if rows.dtype == torch.uint8 else whole.labels
        assert torch.equal(rows, of_all[own])
        assert total == 10
        return of_all

    monkeypatch.setattr(Workers, "gather", gather)
    for part in (slice(0, 3), slice(3, 6), slice(6, 10)):
        batch = Batch(whole.images[part], whole.labels[part], whole.positions[part])
        part_images, part_targets = augmentation(10, **recipe)(batch)
        assert torch.equal(part_images, images[part])
        assert torch.equal(part_targets, targets[part])


@pytest.mark.usefixtures("untouched_global_generators")
def test_the_same_batch_is_augmented_alike_again_and_otherwise_in_another_epoch() -> None:
    batch = whole_batch()
    before = batch.images.clone()
    images, targets = augmentation(**ALL)(batch)
    again, same_targets = augmentation(**ALL)(batch)
    assert torch.equal(images, again)
    assert torch.equal(targets, same_targets)
    assert torch.equal(batch.images, before)
    assert not torch.equal(images, augmentation(epoch=2, **ALL)(batch)[0])
