"""A table of a TOML file that a person wrote. It checks the types of values and reports faults with file and line."""

import re
import tomllib
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.storage.text import TextError, decode_text
from pipeline.tasks.near_names import near_names
from pipeline.tasks.settings import describe_kind
from pipeline.tasks.toml_lines import Key, line_numbers, line_of


class Table:
    """One table. All tables of a file share one list of faults."""

    def __init__(self, file: str, path: Key, values: Mapping[str, Any], lines: dict[Key, int], faults: list[str]):
        self.file = file
        self.path = path
        self.values = values
        self.faults = faults
        self._lines = lines

    def line(self, *key: str) -> int:
        """The line of the table, or of a key in it."""
        return line_of(self._lines, self.path + key)

    def fault(self, message: str, *key: str) -> None:
        """Adds a fault of the table or of a key in it."""
        name = ".".join(self.path + key)
        self.faults.append(f"{self.file}:{self.line(*key)}: {name + ': ' if name else ''}{message}")

    def table(self, key: str) -> "Table | None":
        """The table under a key: an empty one if the key is absent, None if the key holds something else."""
        values = self.values.get(key, {})
        if not isinstance(values, dict):
            self.fault(f"expected a table, [{'.'.join((*self.path, key))}]; found {came(values)}", key)
            return None
        return Table(self.file, (*self.path, key), values, self._lines, self.faults)

    def fields(self, kinds: Mapping[str, Any], hint: Callable[[str], str | None] = lambda key: None) -> dict[str, Any]:
        """The values of all valid keys; the others become faults.

        Args:
            kinds: The type annotation of every possible key. dict marks a table, which is skipped.
            hint: Returns what to say about an unknown key, or None to suggest names like it.
        """
        found = {}
        for key, value in self.values.items():
            if key not in kinds:
                self.fault(f"no such field; {hint(key) or did_you_mean(key, kinds)}", key)
            elif kinds[key] is not dict:
                try:
                    found[key] = as_kind(value, kinds[key])
                except ValueError:
                    self.fault(f"expected {_described(kinds[key])}; found {came(value)}", key)
        return found


def read_table(file: str, faults: list[str], *, expected: str = "tables [tasks.<name>]") -> Table | None:
    """A whole file as a table; None, with a fault added, if it cannot be read or is no TOML."""
    try:
        text = decode_text(Path(file).read_bytes(), file)
        values = tomllib.loads(text)
    except OSError as error:
        faults.append(f"{file}: cannot be read ({error.strerror}); expected a TOML file with {expected}")
    except TextError as error:
        faults.append(str(error))
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
        line, message = (int(place[1]), str(error)[: place.start()]) if place else (text.count("\n") + 1, str(error))
        column = f" (column {place[2]})" if place else ""
        quotes = '; texts need quotes, as in data = "photos"' if message == "Invalid value" else ""
        faults.append(f"{file}:{line}: not TOML: {message}{column}{quotes}")
    else:
        return Table(file, (), values, line_numbers(text), faults)
    return None


def did_you_mean(key: str, names: Collection[str]) -> str:
    """Suggests the names most like a key, else lists all of them."""
    return near_names(key, names) or f"possible are {', '.join(names)}"


def as_kind(value: Any, kind: Any) -> Any:
    """Converts a TOML value to the annotated type of a field; raises ValueError if it does not fit.

    TOML has lists instead of tuples, and no null: None is written "none".
    """
    options = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if value == "none" and types.NoneType in options:
            return None
        return as_kind(value, next(option for option in options if option is not types.NoneType))
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(value)
        return tuple(as_kind(part, options[0]) for part in value)
    if kind is float and type(value) is int:
        return float(value) if abs(value) < 2**1023 else _refuse(value)
    if kind not in (bool, int, float, str):
        raise TypeError(f"a field of type {kind!r} cannot be read from TOML")
    return value if type(value) is kind else _refuse(value)


def came(value: Any) -> str:
    """A value roughly as the person wrote it, and its type in words."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}
    names[dict] = "a table"
    shown = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return f"{shown}, {names.get(type(value), f'a {type(value).__name__}')}"


def _refuse(value: Any) -> typing.NoReturn:
    raise ValueError(value)


def _described(kind: Any) -> str:
    return describe_kind(kind, several="a list, each {}", none='"none"')
