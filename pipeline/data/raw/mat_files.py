"""MATLAB's .mat files, read by scipy.io.loadmat: it parses numbers, texts, cells and structs, and executes nothing.

Functions and objects in a file stay opaque values. Files of MATLAB 7.3 are HDF5, another format, and are refused.
"""

import math
import os
from collections.abc import Sequence

import numpy as np


class MatFile:
    """Variables of one file: arrays and cells of numbers or texts, or arrays of structs with such fields."""

    def __init__(self, path: str, names: Sequence[str]) -> None:
        """Reads the named variables, whatever else is in the file.

        Raises:
            ValueError: there is no such file, it is no .mat file that can be read, or has no such variable.
        """
        import scipy.io  # a third of a second, for those who have such data

        self._file = os.path.basename(path)
        try:
            found = scipy.io.loadmat(
                path, appendmat=False, squeeze_me=True, verify_compressed_data_integrity=True, variable_names=[*names]
            )
        except FileNotFoundError as error:
            raise ValueError(f"{self._file}: no such file in {os.path.dirname(path)}") from error
        except Exception as error:  # whatever a damaged byte leads the parser to
            raise ValueError(f"{self._file}: no readable .mat file ({type(error).__name__}: {error})") from error
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(f"{self._file}: has no variable {', '.join(missing)}")
        self._variables = {name: np.atleast_1d(found[name]).ravel() for name in names}

    def whole_numbers(self, name: str, field: str | None = None) -> list[int]:
        """A variable's values, or a field's of a variable of structs; MATLAB keeps whole numbers as floats too.

        Raises:
            ValueError: one of them is no whole number, or there is no such field.
        """
        values = self._values(name, field)
        for value in values:
            number = isinstance(value, int | float | np.number)
            if not number or not math.isfinite(value) or value != math.floor(value):
                raise ValueError(f"{self._file}: {field or name}: {value!r} is no whole number")
        return [int(value) for value in values]

    def texts(self, name: str, field: str | None = None) -> list[str]:
        """The same for texts.

        Raises:
            ValueError: one of them is no text, or there is no such field.
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
