"""The rule for names of classes, whatever layout or task file they come from.

A name is kept without white space around it and in Unicode's NFC, in which a letter and its accent are one character:
macOS writes the names of folders in another form than Linux and Windows. Two names of a list that are then equal, or
that only look alike, are a fault: nobody would mean two classes by them, and in a table of results nobody could tell
them apart.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_LEADING_ZEROS = re.compile(r"(?<![0-9.,])0+(?=[0-9])")  # not the fractions of 0.5 and 0.05
_REMEDY = "give one class one name, or two classes names that differ in more than that"

Named = tuple[str, str]
"""Where a class is named (``classnames.txt:3``), and the text there, before `class_name`."""


def class_name(text: str) -> str:
    """The name of a class as it is kept, compared and shown."""
    return unicodedata.normalize("NFC", text).strip()


def name_faults(named: Sequence[Named]) -> list[str]:
    """What is wrong with a list that names each class once."""
    return repeated_faults(named) + alike_faults(named)


def repeated_faults(named: Iterable[Named]) -> list[str]:
    """A fault for each name that is empty, or that stands in the list already."""
    faults, first = [], dict[str, Named]()
    for where, text in named:
        name = class_name(text)
        if not name:
            faults.append(f"{where}: empty, expected a class name")
        elif name in first:
            faults.append(f"{where}: {_both(text, *first[name])} are the same class; keep one of the two")
        first.setdefault(name, (where, text))
    return faults


def alike_faults(named: Iterable[Named]) -> list[str]:
    """A fault for each name that differs from another one by what people overlook; equal names are one class here."""
    distinct, first, faults = dict[str, Named](), dict[str, Named](), []
    for where, text in named:
        distinct.setdefault(class_name(text), (where, text))
    for name, (where, text) in distinct.items():
        key = _look(name)
        if not _is_unicode(name):
            faults.append(f"{where}: {_bytes(text)} is not UTF-8; rename it")
        elif key in first:
            how = _difference(name, class_name(first[key][1]))
            faults.append(f"{where}: {_both(text, *first[key])} differ by {how} alone; {_REMEDY}")
        first.setdefault(key, (where, text))
    return faults


def _look(name: str) -> str:
    """Equal for names that differ by case, leading zeros, white space or invisible characters alone."""
    visible = "".join(character for character in name if unicodedata.category(character) != "Cf")
    return _LEADING_ZEROS.sub("", " ".join(visible.split()).casefold())


def _difference(name: str, other: str) -> str:
    if name.casefold() == other.casefold():
        return "case"
    if _LEADING_ZEROS.sub("", name) == _LEADING_ZEROS.sub("", other):
        return "leading zeros"
    return "case, leading zeros, white space or invisible characters"


def _both(text: str, where: str, other: str) -> str:
    return f"{text!r} ({_bytes(text)}) and {other!r} ({_bytes(other)}, {where})"


def _bytes(text: str) -> str:
    return repr(text.encode("utf-8", "surrogateescape"))  # so Python keeps bytes of a file's name that are not UTF-8


def _is_unicode(text: str) -> bool:
    """Whether a name of a folder is UTF-8: other bytes become surrogates in Python's names of files."""
    return not any(unicodedata.category(character) == "Cs" for character in text)
