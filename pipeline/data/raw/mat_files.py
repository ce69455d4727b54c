"""Reads MATLAB's .mat files with scipy.io.loadmat, which parses numbers, texts, cells and structs and executes nothing.

Functions and objects in a file stay opaque values. Files of MATLAB 7.3 have another format, HDF5, and are refused.
"""

import math
import os
from collections.abc import Sequence

import numpy as np


class MatFile:
    """Variables of one file: arrays or cells of numbers or texts, or arrays of structs with such fields."""

    def __init__(self, path: str, names: Sequence[str]) -> None:
        """Reads the named variables and ignores the rest of the file.

        Raises:
            ValueError: The file does not exist, is no readable .mat file, or lacks a variable.
        """
        import scipy.io  # takes a third of a second, and only these data need it

        self._file = os.path.basename(path)
        try:
            found = scipy.io.loadmat(
                path, appendmat=False, squeeze_me=True, verify_compressed_data_integrity=True, variable_names=[*names]
            )
        except FileNotFoundError as error:
            raise ValueError(f"{self._file}: no such file in {os.path.dirname(path)}") from error
        except Exception as error:  # damaged bytes can make the parser raise any error
            raise ValueError(f"{self._file}: no readable .mat file ({type(error).__name__}: {error})") from error
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(f"{self._file}: has no variable {', '.join(missing)}")
        self._variables = {name: np.atleast_1d(found[name]).ravel() for name in names}

    def whole_numbers(self, name: str, field: str | None = None) -> list[int]:
        """Values of a variable, or of a field of structs, as whole numbers; MATLAB may store them as floats.

        Raises:
            ValueError: A value is no whole number, or the field does not exist.
        """
        values = self._values(name, field)
        for value in values:
            number = isinstance(value, int | float | np.number)
            if not number or not math.isfinite(value) or value != math.floor(value):
                raise ValueError(f"{self._file}: {field or name}: {value!r} is no whole number")
        return [int(value) for value in values]

    def texts(self, name: str, field: str | None = None) -> list[str]:
        """Values of a variable, or of a field of structs, as texts.

        Raises:
            ValueError: A value is no text, or the field does not exist.
        """
        values = self._values(name, field)
        for value in values:
            if not isinstance(value, str):
                raise ValueError(f"{self._file}: {field or name}: {value!r} is no text")
        return [str(value) for value in values]

    def _values(self, name: str, field: str | None) -> np.ndarray:
        array = self._variables[name]
        if field is None:
            return array
        if field not in (array.dtype.names or ()):
            raise ValueError(f"{self._file}: {name}: is no array of structs with the field {field}")
        return array[field]
