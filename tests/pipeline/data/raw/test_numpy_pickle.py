"""Pickles of arrays by Python 2 and 3 are read; anything else in a pickle is refused without being executed."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pipeline.data.raw.numpy_pickle import RefusedPickleError, read_pickled_dict

DATA = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(6, 5) + 200
Write = Callable[[Any], bytes]


class _AsPython2(pickle._Pickler):
    """Writes texts and bytes as the single string type of Python 2, as in the original CIFAR files."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def _save(self, value: str | bytes) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch[str] = dispatch[bytes] = _save


def as_python_2(value: Any) -> bytes:
    file = io.BytesIO()
    _AsPython2(file, 2).dump(value)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")


def as_python_3(protocol: int) -> Write:
    return lambda value: pickle.dumps(value, protocol=protocol)


WRITERS = {
    "python2": as_python_2,
    "protocol2": as_python_3(2),
    "protocol3": as_python_3(3),
    "protocol4": as_python_3(4),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("array", [DATA, np.asfortranarray(DATA)], ids=["rows", "columns"])
def test_what_python_2_and_3_wrote_is_read_as_pickle_itself_reads_it(write: Write, array: np.ndarray) -> None:
    written = write({"data": array, b"labels": [3, 1], "names": ["a", b"b"], "batch": "training 1"})
    found = read_pickled_dict(io.BytesIO(written))
    reference = pickle.loads(written.replace(b"numpy.core.", b"numpy._core."), encoding="latin1")
    np.testing.assert_array_equal(found.pop("data"), reference["data"])
    assert found == {"labels": [3, 1], "names": ["a", "b"], "batch": "training 1"}


class _Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


HOSTILE: dict[str, tuple[Callable[[str], Any], str]] = {
    "os.system": (lambda mark: _Calls(os.system, f"touch {mark}"), "posix.system"),
    "eval": (lambda mark: _Calls(eval, f"open({mark!r}, 'w')"), "builtins.eval"),
    "nested": (lambda mark: {"data": [DATA, {"a": (_Calls(open, mark, "w"),)}]}, "io.open"),
    "getattr": (lambda mark: _Calls(getattr, mark, "upper"), "builtins.getattr"),
    "numpy": (lambda mark: {"data": np.zeros(3, np.uint8), "more": _Calls(np.load, mark)}, "numpy.load"),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(("make", "name"), HOSTILE.values(), ids=HOSTILE)
def test_a_pickle_that_asks_for_anything_else_is_refused_before_it_runs(
    make: Callable[[str], Any], name: str, protocol: int, tmp_path: Path
) -> None:
    mark = tmp_path / "executed"
    written = pickle.dumps({"data": make(str(mark))}, protocol=protocol, fix_imports=False)
    with pytest.raises(RefusedPickleError, match=f"it asks for {name}; nothing of a pickle is ever executed"):
        read_pickled_dict(io.BytesIO(written))
    assert not mark.exists()


def test_python_2s_names_of_what_executes_are_refused_too() -> None:
    with pytest.raises(RefusedPickleError, match=r"it asks for __builtin__.eval"):
        read_pickled_dict(io.BytesIO(b"\x80\x02c__builtin__\neval\nU\x011\x85R."))


@pytest.mark.parametrize("name", [b"numpy\nndarray", b"numpy\ndtype", b"_codecs\nencode"])
def test_a_pickle_cannot_change_what_stands_for_numpy(name: bytes) -> None:
    written = b"\x80\x02c" + name + b"\nN}U\x0c__setstate__K\x01s\x86b."  # sets an attribute of a class
    # Without its own __setstate__, the class would accept the attribute, and reading would fail for another reason.
    with pytest.raises(RefusedPickleError, match=r"no readable pickle \(TypeError: .*__setstate__"):
        read_pickled_dict(io.BytesIO(written))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"data": DATA.astype(np.float32)}, "it has an array of 'f4', expected u1"),
        ({"data": np.array([{}], object)}, "it has an array of 'O8', expected u1"),
        ([DATA], "it holds a list, expected a dict"),
        ({"data": np.float64(1)}, "it asks for numpy._core.multiarray.scalar"),
    ],
    ids=["float", "object", "list", "scalar"],
)
def test_other_values_than_bytes_are_refused(value: Any, message: str) -> None:
    with pytest.raises(RefusedPickleError, match=message):
        read_pickled_dict(io.BytesIO(pickle.dumps(value, protocol=4)))


def test_an_array_of_more_or_fewer_bytes_than_its_shape_says_is_refused() -> None:
    written = pickle.dumps({"data": DATA}, protocol=4)
    assert written.count(b"K\x06K\x05\x86") == 1
    with pytest.raises(RefusedPickleError, match=r"it has an array of shape \(7, 5\) with another number of bytes"):
        read_pickled_dict(io.BytesIO(written.replace(b"K\x06K\x05\x86", b"K\x07K\x05\x86")))


def test_an_array_that_was_never_filled_is_refused() -> None:
    with pytest.raises(RefusedPickleError, match="it has an array without values"):
        read_pickled_dict(io.BytesIO(b"\x80\x02}U\x04datacnumpy\nndarray\n)Rs."))


def test_a_codec_that_is_not_latin1_is_refused() -> None:
    written = b"\x80\x02}U\x01ac_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86Rs."
    with pytest.raises(RefusedPickleError, match="it asks for a text in 'rot13'"):
        read_pickled_dict(io.BytesIO(written))


@pytest.mark.parametrize(
    "written", [b"", b"no pickle", pickle.dumps({"data": DATA})[:-9]], ids=["empty", "text", "cut"]
)
def test_what_is_no_pickle_is_said(written: bytes) -> None:
    with pytest.raises(RefusedPickleError, match="it is no readable pickle"):
        read_pickled_dict(io.BytesIO(written))
