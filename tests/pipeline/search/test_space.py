"""What may be searched: the default space, a user's file, and every fault of it by line."""

from pathlib import Path

import pytest

from hst.config import HSN_PRESETS, HSNConfig
from pipeline.search.space import (
    Choice,
    Range,
    Space,
    apply,
    as_settings,
    check_space,
    default_space,
    point_of,
    read_space,
    space_of,
)
from pipeline.tasks.recipe import Recipe
from pipeline.tasks.settings import apply_settings

HSN = HSNConfig().resolve(12)


def written(tmp_path: Path, text: str) -> tuple[dict[str, Choice | Range | None], list[str]]:
    file = tmp_path / "space.toml"
    file.write_text(text)
    return read_space(str(file))


def faults(tmp_path: Path, text: str) -> list[str]:
    found = written(tmp_path, text)[1]
    return [fault.replace(str(tmp_path), "") for fault in found]


@pytest.mark.parametrize("depth", [4, 6, 8, 12, 24, 32])
@pytest.mark.parametrize("preset", HSN_PRESETS)
def test_every_side_network_of_the_default_space_can_be_built_on_the_vit(preset: str, depth: int) -> None:
    hsn = HSN_PRESETS[preset].resolve(depth)
    space = default_space(hsn, depth)
    assert check_space(space, Recipe(), hsn, depth) == []
    assert all(
        value in part.values
        for name, value in point_of(Recipe(), hsn, space).items()
        if isinstance(part := space[name], Choice)
    ), "the default is a point of it"


def test_the_default_space_has_the_papers_ranges_and_its_small_network() -> None:
    space = default_space(HSN, 12)
    assert space["num_registers"] == Choice((0, 1, 2, 4, 8, 16, 32))
    assert space["learning_rate"] == Range(low=5e-4, high=1e-2, log=True)
    assert space["depths"] == Choice(([3, 3, 3, 3], [1, 1, 1, 1], [2, 2, 2, 2], [2, 2, 6, 2]))
    assert isinstance(space["widths"], Choice)
    assert list(HSN_PRESETS["HSN_S"].widths) in space["widths"].values
    assert [48, 72, 96, 108] in space["widths"].values


def test_a_file_adds_replaces_fixes_and_leaves_out(tmp_path: Path) -> None:
    text = """
        learning_rate = { low = 1e-4, high = 1e-2, log = true }
        num_registers = { low = 0, high = 8 }
        widths = [[16, 24, 32, 36], [32, 48, 64, 72]]
        depths = [1, 1, 2, 2]
        drop_path = 0.1
        weight_decay = "recipe"
        rand_augment = ["none", "rand-m9-mstd0.5-inc1"]
        share_bridge = [true, false]
    """
    given, found = written(tmp_path, text)
    assert found == []
    assert given == {
        "learning_rate": Range(low=1e-4, high=1e-2, log=True),
        "num_registers": Range(low=0, high=8, log=False, whole=True),
        "widths": Choice(([16, 24, 32, 36], [32, 48, 64, 72])),
        "depths": Choice(([1, 1, 2, 2],)),
        "drop_path": Choice((0.1,)),
        "weight_decay": None,
        "rand_augment": Choice((None, "rand-m9-mstd0.5-inc1")),
        "share_bridge": Choice((True, False)),
    }
    space = space_of(given, {"num_registers"}, "hst", HSN, 12)
    assert list(space) == ["depths", "drop_path", "learning_rate", "rand_augment", "share_bridge", "widths"]


def test_a_method_without_a_side_network_is_searched_without_its_fields() -> None:
    space = space_of({}, (), "another", HSN, 12)
    assert space.keys() == {"learning_rate", "weight_decay", "drop_path"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr = 1", "no such field; did you mean learning_rate?"),
        ("epochs = [10, 20]", "cannot be searched; set it for all by --set"),
        ('hsn = ["HSN_S", "HSN_B"]', "cannot be searched; name the widths"),
        ("drop_path = []", "an empty list"),
        ('drop_path = ["much"]', "'much', a text; expected values as `--set drop_path=`"),
        ("num_registers = [1.5]", "1.5, a number; expected values"),
        ("widths = [32, 48]\ndepths = [[1, 2], 3]", "3, a whole number; expected values"),
        ("learning_rate = { low = 1e-2, high = 1e-3 }", "expected low below high"),
        ("learning_rate = { low = 0, high = 1e-3, log = true }", "above 0"),
        ("learning_rate = { min = 0, high = 1e-3 }", "expected { low"),
        ("num_registers = { low = 0.5, high = 8 }", "expected whole numbers"),
        ("share_bridge = { low = 0, high = 1 }", "is no number"),
        ("learning_rate = ", "not TOML"),
    ],
)
def test_a_fault_of_a_file_is_told_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    (fault,) = faults(tmp_path, text)
    assert expected in fault
    assert fault.startswith(f"/space.toml:{text.count(chr(10)) + 1}: ")


def test_a_file_from_windows_is_read_and_one_in_another_encoding_is_told(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    for encoding in ("utf-8-sig", "utf-16"):
        file.write_bytes("# épochs\r\ndrop_path = 0.1\r\n".encode(encoding))
        assert read_space(str(file)) == ({"drop_path": Choice((0.1,))}, [])
    file.write_bytes("drop_path = 0.1\n# épochs\n".encode("cp1252"))
    assert read_space(str(file))[1][0].startswith(f"{file}:2: not a UTF-8 text: byte 18 of the file is 0xe9")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "cannot be read" in read_space(str(tmp_path / "none.toml"))[1][0]


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"learning_rate": Choice((0.1, -1.0))}, "learning_rate=-1.0: expected a number above 0"),
        ({"num_registers": Choice((1, 65))}, "num_registers=65"),
        ({"widths": Choice(([32, 48, 64, 70],))}, "70"),
        ({"depths": Choice(([4, 4, 4, 4],))}, "16 side blocks for a ViT of 12 blocks"),
        ({"num_heads": Choice(([2, 4, 8, 12], [3, 4, 8, 12]))}, "32"),
        (
            {
                "use_global_token": Choice((False,)),
                "num_registers": Choice((0,)),
                "fine_grained_injection": Choice((False,)),
            },
            "would see nothing",
        ),
    ],
    ids=range(6),
)
def test_what_no_run_can_have_is_found_before_any_trial(space: Space, expected: str) -> None:
    (fault,) = check_space(space, Recipe(), HSN, 12)
    assert expected in fault


def test_a_point_changes_what_it_names_and_as_settings_gives_the_same() -> None:
    point = {"learning_rate": 0.00123, "widths": [16, 24, 32, 36], "num_registers": 4, "rand_augment": None}
    recipe, hsn = apply(Recipe(), HSN, point)
    assert (recipe.learning_rate, hsn.widths, hsn.num_registers) == (0.00123, (16, 24, 32, 36), 4)
    assert point_of(recipe, hsn, point) == point
    set_recipe, set_hsn, found = apply_settings(Recipe(), as_settings(point))
    assert found == []
    assert (set_recipe, set_hsn.resolve(12)) == (recipe, hsn)
