"""Recipes and `--set`."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from hst.config import DEFAULT_BACKBONE, HSN_PRESETS, HSNConfig
from pipeline.tasks import near_names
from pipeline.tasks.recipe import FIELD_GROUPS, Recipe, RecipeError
from pipeline.tasks.settings import apply_settings
from pipeline.training.unit import with_pixels_of

ROOT = Path(__file__).resolve().parents[3]


def test_the_defaults_are_those_of_the_released_code() -> None:
    recipe = Recipe()
    assert (recipe.image_size, recipe.epochs, recipe.batch_size) == (224, 100, 64)
    assert (recipe.warmup_learning_rate, recipe.min_learning_rate) == (1e-7, 1e-8)
    pixels = with_pixels_of(recipe, DEFAULT_BACKBONE)
    assert (pixels.mean, pixels.std, pixels.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    assert recipe.label_smoothing == 0
    assert (recipe.mixup, recipe.cutmix, recipe.random_erasing, recipe.horizontal_flip) == (0, 0, 0, 0)
    assert (recipe.rand_augment, recipe.random_resized_crop, recipe.eval_crop) == (None, False, None)


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (9, 0), (10, 1), (19, 1), (40, 4), (100, 10)])
def test_the_warm_up_is_a_tenth_of_the_epochs_rounded_down(epochs: int, warmup: int) -> None:
    assert Recipe(epochs=epochs).warmup_epochs == warmup


def test_every_field_stands_in_one_group() -> None:
    grouped = [name for names in FIELD_GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(field.name for field in dataclasses.fields(Recipe))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 16),
        ("image_size", 224.0),
        ("epochs", 0),
        ("epochs", True),
        ("batch_size", 1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -1.0),
        ("drop_path", 1.0),
        ("label_smoothing", 1.0),
        ("mixup", -0.1),
        ("cutmix", float("inf")),
        ("random_erasing", 1.1),
        ("horizontal_flip", -0.5),
        ("horizontal_flip", True),
        ("rand_augment", "rand-x9"),
        ("rand_augment", "augmix-m3"),
        ("rand_augment", "rand-m9-"),
        ("rand_augment", 9),
        ("random_resized_crop", 1),
        ("eval_crop", 0.0),
        ("eval_crop", 1.01),
        ("clip_norm", 0.0),
        ("accumulation_steps", 65),
        ("min_learning_rate", 1.0),
        ("mean", (0.5,)),
        ("std", (0.5, 0.5, 0.0)),
        ("precision", "float16"),
        ("head_input", "cls"),
        ("hsn", "HSN_XL"),
    ],
)
def test_an_impossible_value_is_refused_with_its_field_and_value(field: str, value: object) -> None:
    with pytest.raises(RecipeError) as error:
        dataclasses.replace(Recipe(), **{field: value})  # type: ignore[arg-type]
    assert f"{field}={value!r}: expected" in str(error.value)
    assert len(error.value.faults) == 1


def test_settings_reach_the_recipe_and_the_side_network() -> None:
    settings = [
        "image_size=112",
        "learning_rate=5e-3",
        "mixup=0.8",
        "cutmix=1",
        "random_erasing=0.25",
        "rand_augment=rand-m9-mstd0.5-inc1",
        "random_resized_crop=true",
        "horizontal_flip=0.5",
        "eval_crop=0.875",
        "clip_norm=1",
        "mean=0.4, 0.5,0.6",
        "head_input=side+cls",
        "hsn=HSN_S",
        "num_registers=2",
        "widths=32,48,64,72",
        "tune_backbone_norms=false",
        "depths=none",
    ]
    recipe, hsn, faults = apply_settings(Recipe(epochs=7), settings)
    assert faults == []
    expected = Recipe(
        epochs=7,
        image_size=112,
        learning_rate=5e-3,
        mixup=0.8,
        cutmix=1.0,
        random_erasing=0.25,
        rand_augment="rand-m9-mstd0.5-inc1",
        random_resized_crop=True,
        horizontal_flip=0.5,
        eval_crop=0.875,
        clip_norm=1.0,
        mean=(0.4, 0.5, 0.6),
        head_input="side+cls",
        hsn="HSN_S",
    )
    assert recipe == expected
    widths = (32, 48, 64, 72)
    preset = HSN_PRESETS["HSN_S"]
    assert hsn == dataclasses.replace(preset, num_registers=2, widths=widths, tune_backbone_norms=False)


def test_no_settings_leave_the_recipe_and_give_its_preset() -> None:
    assert apply_settings(Recipe(hsn="HSN_L"), []) == (Recipe(hsn="HSN_L"), HSN_PRESETS["HSN_L"], [])


def test_all_faults_of_the_settings_are_reported_together() -> None:
    settings = [
        "learnin_rate=1",
        "zzz=1",
        "epochs",
        "batch_size=many",
        "drop_path=2",
        "image_size=1",
        "num_heads=0,0,0,0",
        "hsn=HSN_XL",
        "std=0.5",
        "std=0.4",
    ]
    recipe, hsn, faults = apply_settings(Recipe(), settings)
    assert (recipe, hsn) == (Recipe(), HSN_PRESETS["HSN_B"])
    text = "\n".join(faults)
    for part in (
        "'learnin_rate'; did you mean learning_rate",
        "'zzz'; the fields are image_size",
        "'epochs': expected field=value",
        "'batch_size=many': expected a whole number",
        "drop_path=2.0: expected a number from 0 to below 1",
        "image_size=1: expected a whole number of pixels, at least 32",
        "num_heads",
        "hsn='HSN_XL': expected one of HSN_S, HSN_B, HSN_L",
        "'std=0.4': std is set twice",
        "std=(0.5,): expected three numbers",
    ):
        assert part in text
    assert len(faults) == 10


@pytest.mark.parametrize(
    ("given", "meant"), [("lr", "learning_rate"), ("LR", "learning_rate"), ("wd", "weight_decay"), ("bs", "batch_size")]
)
def test_the_usual_short_names_lead_to_the_fields(given: str, meant: str) -> None:
    _, _, (fault,) = apply_settings(Recipe(), [f"{given}=3"])
    assert fault.endswith(f"; did you mean {meant}?")


def test_every_usual_name_stands_for_a_field_and_is_none() -> None:
    fields = {field.name for part in (Recipe, HSNConfig) for field in dataclasses.fields(part)}
    assert fields >= set(near_names._USUAL_NAMES.values())
    assert not fields & set(near_names._USUAL_NAMES)


def test_every_field_of_a_recipe_and_of_the_side_network_can_be_set_from_its_own_text() -> None:
    recipe, hsn = Recipe(clip_norm=2.5), HSN_PRESETS["HSN_S"]
    fields = [(part, field.name) for part in (recipe, hsn) for field in dataclasses.fields(part)]
    settings = [f"{name}={getattr(part, name)}" for part, name in fields]
    settings[settings.index("hsn=HSN_B")] = "hsn=HSN_S"
    assert apply_settings(Recipe(), settings) == (dataclasses.replace(recipe, hsn="HSN_S"), hsn, [])
    assert isinstance(hsn, HSNConfig)


def test_importing_the_tasks_loads_nothing_heavy() -> None:
    program = (
        "import sys, pipeline.tasks.catalogue, pipeline.storage.locations, pipeline.storage.files;"
        "heavy = {'torch', 'numpy', 'ray', 'mlflow', 'boto3', 'webdataset', 'PIL'} & set(sys.modules);"
        "sys.exit(f'loaded {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
