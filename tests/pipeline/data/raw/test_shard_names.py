"""Names of the tars of a split, from a number of tars or from a list with ranges."""

from pathlib import Path

import pytest

from pipeline.data.raw.shard_names import MAX_TARS, expand_range, read_shard_names


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a b-{0..2}.tar", ["a b-0.tar", "a b-1.tar", "a b-2.tar"]),
        ("{9..11}.tar", ["9.tar", "10.tar", "11.tar"]),
        ("s-{000008..000011}.tar", ["s-000008.tar", "s-000009.tar", "s-000010.tar", "s-000011.tar"]),
        ("{00..01}/x.tar", ["00/x.tar", "01/x.tar"]),
        ("{5..5}.tar", ["5.tar"]),
    ],
)
def test_a_range_stands_for_the_names_that_a_shell_makes_of_it(pattern: str, names: list[str]) -> None:
    assert expand_range(pattern) == names


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{a..c}.tar", "expected one range of numbers"),
        ("{0,1}.tar", "expected one range of numbers"),
        ("{0..1}{0..1}.tar", "expected one range of numbers"),
        ("{0..{1..2}}.tar", "expected one range of numbers"),
        ("{0..1.tar", "expected one range of numbers"),
        ("}{.tar", "expected one range of numbers"),
        ("{3..2}.tar", "stands for 0 names"),
        (f"{{0..{MAX_TARS}}}.tar", f"stands for {MAX_TARS + 1} names"),
        ("{0..999999999999}.tar", "expected one range of numbers"),
        ("{00..100}.tar", "not of one length"),
        ("../{0..1}.tar", "no name of a tar below"),
        ("/data/{0..1}.tar", "no name of a tar below"),
        ("s3://bucket/{0..1}.tar", "no name of a tar below"),
        ("..\\x.tar", "no name of a tar below"),
    ],
)
def test_what_is_no_bounded_range_below_the_folder_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_range(pattern)


def read(tmp_path: Path, **files: str) -> tuple[list[str], list[str]]:
    (tmp_path / "train").mkdir()
    for name, text in files.items():
        (tmp_path / "train" / f"{name}.txt").write_text(text)
    faults: list[str] = []
    return read_shard_names(str(tmp_path), "train", faults), faults


def test_a_number_of_tars_names_them_from_0(tmp_path: Path) -> None:
    assert read(tmp_path, nshards="3\n") == (["0.tar", "1.tar", "2.tar"], [])


def test_a_list_keeps_its_order_and_may_have_ranges(tmp_path: Path) -> None:
    assert read(tmp_path, shards="z.tar\n\nb-{0..1}.tar\n") == (["z.tar", "b-0.tar", "b-1.tar"], [])


@pytest.mark.parametrize("text", ["0", "-1", "x", "1e3", "1000000000"])
def test_a_number_that_is_none_or_out_of_range_is_told(text: str, tmp_path: Path) -> None:
    fault = f"train/nshards.txt:1: {text!r}: expected the number of tars, 1 to {MAX_TARS}"
    assert read(tmp_path, nshards=text) == ([], [fault])


def test_what_is_wrong_with_a_list_is_told_together(tmp_path: Path) -> None:
    names, faults = read(tmp_path, shards="a-1.tar\na-{0..2}.tar\n{3..2}.tar\n../b.tar\n")
    assert names == []
    assert faults == [
        "train/shards.txt:3: '{3..2}.tar': stands for 0 names; expected 1 to 100000",
        "train/shards.txt:4: '../b.tar' is no name of a tar below the split's folder",
        "train/shards.txt: names a-1.tar 2 times",
    ]


def test_an_empty_list_and_two_lists_are_told(tmp_path: Path) -> None:
    assert read(tmp_path, shards="\n") == ([], ["train/shards.txt: names no tar"])
    (tmp_path / "train/nshards.txt").write_text("1")
    faults: list[str] = []
    read_shard_names(str(tmp_path), "train", faults)
    assert faults == ["train/: has nshards.txt and shards.txt; keep the one to be read"]
