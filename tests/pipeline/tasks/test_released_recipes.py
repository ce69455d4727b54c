"""The recipes of the released scripts against the table they were taken from."""

import dataclasses

import pytest

from pipeline.tasks.recipe import Recipe
from pipeline.tasks.released_recipes import CIFAR100_RECIPE, FGVC_RECIPES

# learning rate, weight decay
TABLE = {
    "cub200": (1e-3, 5e-2),
    "nabirds": (5e-4, 5e-2),
    "flowers": (1e-3, 5e-5),
    "dogs": (5e-3, 5e-2),
    "cars": (5e-3, 5e-2),
}


def changes(recipe: Recipe) -> dict[str, object]:
    defaults = dataclasses.asdict(Recipe())
    return {name: value for name, value in dataclasses.asdict(recipe).items() if value != defaults[name]}


STRONG = {
    "batch_size": 128,
    "label_smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "random_erasing": 0.25,
    "random_resized_crop": True,
    "horizontal_flip": 0.5,
    "eval_crop": 0.9,
    "decoding": "stored",
}


@pytest.mark.parametrize("task", TABLE)
def test_an_fgvc_recipe_is_the_scripts_and_otherwise_the_default(task: str) -> None:
    rate, decay = TABLE[task]
    expected = {**STRONG, "weight_decay": decay, **({} if rate == 1e-3 else {"learning_rate": rate})}
    assert changes(FGVC_RECIPES[task]) == expected
    assert FGVC_RECIPES.keys() == TABLE.keys()


def test_the_whole_of_cifar_100_is_trained_with_rand_augment_besides() -> None:
    expected = {"learning_rate": 5e-3, "weight_decay": 5e-2, "rand_augment": "rand-m9-mstd0.5-inc1"}
    assert changes(CIFAR100_RECIPE) == {**STRONG, **expected}
