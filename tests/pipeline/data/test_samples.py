"""Paths in lists from outside: separators of Windows, and paths that are absolute."""

from pathlib import Path

import pytest

from pipeline.data.samples import Root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "images/deep").mkdir(parents=True)
    (tmp_path / "images/deep/1.jpg").write_bytes(b"")
    (tmp_path / "images\\deep").mkdir()
    (tmp_path / "images\\deep/2.jpg").write_bytes(b"")
    (tmp_path / "images\\3.jpg").write_bytes(b"")
    (tmp_path / "images/3.jpg").write_bytes(b"")
    return Root(str(tmp_path))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("images/deep/1.jpg", "images/deep/1.jpg"),
        ("images\\deep\\1.jpg", "images/deep/1.jpg"),
        (".\\images\\deep/1.jpg", "images/deep/1.jpg"),
        ("images\\deep/2.jpg", "images\\deep/2.jpg"),
        ("images\\3.jpg", "images\\3.jpg"),
    ],
)
def test_a_backslash_separates_unless_a_file_has_that_name(given: str, found: str, root: Root) -> None:
    assert root.resolve(given) == f"{root.folder}/{found}"


@pytest.mark.parametrize("given", ["/data/1.jpg", "C:\\data\\1.jpg", "c:/data/1.jpg", "\\\\server\\share\\1.jpg"])
def test_an_absolute_path_is_told_the_way_out(given: str, root: Root) -> None:
    with pytest.raises(ValueError, match="is an absolute path; give paths relative to") as error:
        root.resolve(given)
    assert str(error.value) == f"{given!r} is an absolute path; give paths relative to {root.folder}"


def test_an_absolute_path_of_a_file_of_the_folder_is_told_its_relative_one(root: Root) -> None:
    with pytest.raises(ValueError, match=r"here 'images/deep/1\.jpg'"):
        root.resolve(f"{root.folder}/images/deep/1.jpg")


@pytest.mark.parametrize("given", ["..\\secret.jpg", "images\\..\\..\\secret.jpg"])
def test_a_backslash_does_not_lead_out_either(given: str, root: Root) -> None:
    Path(root.folder).parent.joinpath("secret.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="leads out of"):
        root.resolve(given)


def test_a_path_that_no_file_can_have_is_refused(root: Root) -> None:
    for given in ("images\\..", "images/", "", ".", "a\0.jpg", "a\\\0.jpg"):
        with pytest.raises(ValueError, match="is no path of a file below"):
            root.resolve(given)
