"""Reads Python pickles of numbers, texts and uint8 arrays without executing anything in them.

A pickle may name any function to call while it is read. Here it can call none. The names that pickled numpy arrays use
stand for classes of this file, which take the values and build an array. Any other name is refused before it is looked
up.
"""

import math
import pickle
from typing import Any, BinaryIO

import numpy as np


class RefusedPickleError(ValueError):
    """The file is no pickle, or a pickle that needs more than arrays need."""


# Each class has a __setstate__: without one, a pickle could set attributes, even those of the class itself.
class _Latin1:
    """Stands for _codecs.encode, with which Python 3 writes bytes into pickles that Python 2 can read."""

    def __new__(cls, text: str, encoding: str) -> bytes:  # type: ignore[misc]
        if encoding != "latin1":
            raise RefusedPickleError(f"it asks for a text in {encoding!r}, expected 'latin1'")
        return text.encode("latin1")

    def __setstate__(self, state: object) -> None:
        raise RefusedPickleError("it gives a text a state")


class _Dtype:
    """Stands for numpy.dtype; only unsigned bytes are accepted."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise RefusedPickleError(f"it has an array of {code!r}, expected u1 (uint8)")

    def __setstate__(self, state: object) -> None:
        """Ignores the state (byte order and so on), which means nothing for bytes."""


class _Array:
    """Stands for numpy.ndarray and for the function that makes an empty one; the state then gives its content."""

    def __init__(self, *_: object) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, column_major, data = state
        data = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes) or math.prod(shape) != len(data):
            raise RefusedPickleError(f"it has an array of shape {shape!r} with another number of bytes")
        self.value = np.frombuffer(data, np.uint8).reshape(shape, order="F" if column_major else "C")


_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,  # before numpy 2
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise RefusedPickleError(f"it asks for {module}.{name}; nothing of a pickle is ever executed here")
        return _STAND_INS[module, name]


def read_pickled_dict(file: BinaryIO) -> dict[str, Any]:
    """Reads a dict of numbers, texts, lists of them and uint8 arrays; bytes as keys, values or list items become texts.

    Args:
        file: A pickle written by Python 2 or 3.

    Raises:
        RefusedPickleError: The file is no such pickle.
    """
    try:
        # Python 2 uses one type for texts and for the bytes of arrays; latin1 maps every byte to one character.
        found = _Unpickler(file, encoding="latin1").load()
    except RefusedPickleError:
        raise
    except Exception as error:  # damaged or hostile bytes can make the unpickler raise any error
        raise RefusedPickleError(f"it is no readable pickle ({type(error).__name__}: {error})") from error
    if not isinstance(found, dict):
        raise RefusedPickleError(f"it holds a {type(found).__name__}, expected a dict")
    return {str(_text(key)): _plain(value) for key, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        if value.value is None:
            raise RefusedPickleError("it has an array without values")
        return value.value
    return [_text(item) for item in value] if isinstance(value, list) else _text(value)


def _text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value
