"""Variables of .mat files, and the errors for files that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.data.raw.mat_files import MatFile


def test_numbers_texts_and_fields_of_structs_come_out_flat_even_where_there_is_one(tmp_path: Path) -> None:
    structs = np.array([(2.0, "a.jpg")], dtype=[("class", object), ("fname", object)])
    cells = np.array([["x"], ["y"]], dtype=object)
    savemat(tmp_path / "a.mat", {"numbers": np.array([[1.0, 255.0]]), "one": 7, "cells": cells, "structs": structs})
    file = MatFile(str(tmp_path / "a.mat"), ["numbers", "one", "cells", "structs"])
    assert (file.whole_numbers("numbers"), file.whole_numbers("one"), file.texts("cells")) == (
        [1, 255],
        [7],
        ["x", "y"],
    )
    assert (file.whole_numbers("structs", "class"), file.texts("structs", "fname")) == ([2], ["a.jpg"])


@pytest.mark.parametrize("value", [1.5, np.nan, np.inf, "7"])
def test_what_is_no_whole_number_is_said(value: object, tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"labels": value})
    with pytest.raises(ValueError, match=r"a.mat: labels: .* is no whole number"):
        MatFile(str(tmp_path / "a.mat"), ["labels"]).whole_numbers("labels")


def test_texts_and_fields_that_are_none_are_said(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"labels": [1, 2]})
    file = MatFile(str(tmp_path / "a.mat"), ["labels"])
    with pytest.raises(ValueError, match=r"a.mat: labels: .*1.* is no text"):
        file.texts("labels")
    with pytest.raises(ValueError, match=r"a.mat: labels: is no array of structs with the field fname"):
        file.texts("labels", "fname")


def test_a_file_that_is_missing_damaged_or_without_the_variable_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.mat: no such file in "):
        MatFile(str(tmp_path / "none.mat"), ["labels"])
    (tmp_path / "text.mat").write_text("no mat file at all" * 20)
    with pytest.raises(ValueError, match=r"text.mat: no readable .mat file"):
        MatFile(str(tmp_path / "text.mat"), ["labels"])
    (tmp_path / "hdf5.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512))
    with pytest.raises(ValueError, match=r"hdf5.mat: no readable .mat file \(NotImplementedError"):
        MatFile(str(tmp_path / "hdf5.mat"), ["labels"])
    savemat(tmp_path / "a.mat", {"labels": [1, 2]}, do_compression=True)
    with pytest.raises(ValueError, match=r"a.mat: has no variable trnid, tstid"):
        MatFile(str(tmp_path / "a.mat"), ["trnid", "labels", "tstid"])
    data = (tmp_path / "a.mat").read_bytes()
    (tmp_path / "a.mat").write_bytes(data[:-8])
    with pytest.raises(ValueError, match=r"a.mat: no readable .mat file"):
        MatFile(str(tmp_path / "a.mat"), ["labels"])
