"""Augmentation of single images equals timm's with the same draws; it depends only on seed, task, epoch, position."""

import dataclasses
import io
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG, rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation

from hst.images.decoding import decode
from hst.preprocessing import Preprocessing, as_pixels
from hst.randomness import derive_seed, numpy_generator, python_generator
from pipeline.kinds.image_augmentation import (
    ImageAugmentation,
    apply_policy,
    build_policy,
    draw_box,
    image_augmentation,
)
from pipeline.tasks.recipe import Recipe

PREPROCESSING = Preprocessing(image_size=64, mean=(0.4, 0.5, 0.6))
POLICIES = [
    "rand-m9-mstd0.5-inc1",
    "rand-m7-n4-p1",
    "rand-m9-n3-mstd101-inc1-p0.8",
    "rand-m15-mmax20-inc1-p1.0-n3",
    "rand-m8-mstd1-tweights",
    "rand-m6-t3a",
    "rand-m6-n5-mstd0.5-t3aw",
]


def jpeg(size: tuple[int, int] = (150, 100), seed: int = 0) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (30, 30), (400, 21), (21, 400), (3, 2)])
def test_a_random_part_is_timms_with_the_same_draws(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    for seed in range(200):
        random.seed(seed)
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
        box = draw_box(size, random.Random(seed))
        if height and width:  # from an image of a few pixels timm may take none
            assert box == (left, top, width, height)
        assert box[2] >= 1
        assert box[3] >= 1


@pytest.mark.parametrize("text", POLICIES)
def test_rand_augment_is_timms_with_the_same_draws_bit_for_bit(text: str) -> None:
    policy, compared = build_policy(text, PREPROCESSING), 0
    image = PREPROCESSING.square(decode(jpeg()))
    hparams = {"translate_const": 28, "img_mean": (102, 128, 153), "interpolation": Image.Resampling.BICUBIC}
    reference = rand_augment_transform(text, hparams)
    for position in range(60):
        key = (5, "task", "rand_augment arguments", 1, position)
        random.seed(derive_seed(*key))
        numpy_key = (5, "task", "rand_augment operations", 1, position)
        np.random.set_state(numpy_generator(*numpy_key).get_state())
        ours = apply_policy(policy, image, 5, "task", 1, position)
        try:
            expected = reference(image)
        except ValueError as error:
            if "bits must be between" not in str(error):
                raise
            continue  # Pillow 13 refuses timm's strongest posterize
        assert ours.tobytes() == expected.tobytes()
        compared += 1
    assert compared > 30


def test_posterize_to_no_bits_is_black() -> None:
    policy = build_policy("rand-m10-inc1-p1-n1", PREPROCESSING)
    (posterize,) = [operation for operation in policy.ops if operation.name == "PosterizeIncreasing"]
    policy.ops = [posterize]
    assert apply_policy(policy, PREPROCESSING.square(decode(jpeg())), 0, "task", 0, 0).getextrema() == ((0, 0),) * 3


@pytest.mark.usefixtures("untouched_global_generators")
@pytest.mark.parametrize("text", [*POLICIES, "rand", "rand-p1-n9", "rand-p1-n9-inc1"])
def test_no_operation_of_timm_draws_from_a_global_generator(text: str) -> None:
    policy = build_policy(text, PREPROCESSING)
    assert {operation.name for operation in policy.ops} <= set(LEVEL_TO_ARG)
    for position, operation in enumerate(policy.ops):
        alone = build_policy(text, PREPROCESSING)
        alone.ops, alone.num_layers, alone.choice_weights = [operation], 1, None
        operation.prob = 1.0
        apply_policy(alone, PREPROCESSING.square(decode(jpeg())), 0, "task", 0, position)


@pytest.mark.usefixtures("untouched_global_generators")
def test_what_is_drawn_depends_on_seed_task_epoch_and_position_and_on_no_thread_or_order() -> None:
    settings = {"random_resized_crop": True, "rand_augment": "rand-m9-n3-mstd0.5-inc1-p1"}
    augment = ImageAugmentation(preprocessing=PREPROCESSING, seed=0, task="task", **settings)  # type: ignore[arg-type]
    image = jpeg()
    expected = [augment(image, 2, position) for position in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda position: augment(image, 2, position), reversed(range(40))))
    sent = pickle.loads(pickle.dumps(augment))  # as a decoding process receives it
    for position, pixels in enumerate(expected):
        assert pixels.shape == (3, 64, 64)
        assert pixels.dtype == torch.uint8
        assert torch.equal(found[39 - position], pixels)
        assert torch.equal(sent(image, 2, position), pixels)
    others = [augment(image, 3, 0), augment(image, 2, 1)]
    others += [dataclasses.replace(augment, **change)(image, 2, 0) for change in ({"seed": 1}, {"task": "other"})]
    assert not any(torch.equal(other, expected[0]) for other in others)


def test_a_part_comes_from_the_whole_resolution_and_rand_augment_alone_sees_what_evaluation_sees() -> None:
    image, preprocessing = jpeg(), dataclasses.replace(PREPROCESSING, crop_fraction=0.875)
    crop = ImageAugmentation(preprocessing=preprocessing, seed=0, task="task", random_resized_crop=True)
    found = {crop(image, 0, position).numpy().tobytes() for position in range(5)}
    assert len(found) == 5
    box = draw_box((150, 100), python_generator(0, "task", "random_resized_crop", 0, 4))
    assert torch.equal(crop(image, 0, 4), as_pixels(preprocessing.square(decode(image), box)))
    never = ImageAugmentation(preprocessing=preprocessing, seed=0, task="task", rand_augment="rand-m9-p0")
    assert torch.equal(never(image, 0, 0), preprocessing.pixels(image))


def test_a_recipe_without_them_has_no_augmentation_of_images_and_may_keep_its_pixels() -> None:
    batches_only = Recipe(mixup=0.8, cutmix=1.0, random_erasing=0.25, horizontal_flip=0.5, eval_crop=0.9)
    assert image_augmentation(batches_only, PREPROCESSING, seed=0, task="task") is None
    for change in ({"random_resized_crop": True}, {"rand_augment": "rand-m9"}):
        recipe = dataclasses.replace(batches_only, **change)
        augment = image_augmentation(recipe, PREPROCESSING, seed=3, task="task")
        assert augment == ImageAugmentation(preprocessing=PREPROCESSING, seed=3, task="task", **change)


def test_what_is_no_image_is_a_value_error_as_without_augmentation() -> None:
    augment = ImageAugmentation(preprocessing=PREPROCESSING, seed=0, task="task", random_resized_crop=True)
    with pytest.raises(ValueError, match="not a readable image"):
        augment(jpeg()[:200], 0, 0)
