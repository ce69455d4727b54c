"""Reads text files beside the images: lines, and the names of the classes."""

from collections.abc import Sequence

from pipeline.storage import files
from pipeline.storage.text import TextError, read_text
from pipeline.tasks.class_names import class_name, name_faults

CLASS_NAMES = "classnames.txt"


def read_lines(folder: str, name: str, faults: list[str]) -> list[str]:
    """The lines of a text in a local or remote folder; empty, with a fault, if it is no text."""
    try:
        text = read_text(files.join(folder, name), name)
    except TextError as error:
        faults.append(str(error))
        return []
    return text.removesuffix("\n").split("\n") if text else []


def has_class_names(folder: str) -> bool:
    """Whether classnames.txt exists."""
    return files.exists(files.join(folder, CLASS_NAMES))


def read_class_names(folder: str, known: Sequence[str] | None, faults: list[str]) -> list[str]:
    """The lines of a folder's classnames.txt, or the known names if it does not exist.

    Args:
        folder: Local or remote folder.
        known: Class names by label, used without classnames.txt; None if the task has none either.
        faults: List to which the faults of the file are added.
    """
    if not has_class_names(folder):
        if known is None:
            faults.append(
                f"{CLASS_NAMES}: no such file in {folder}, and the task names neither classes nor class_names: write "
                f"the file (a name a line, in the order of the labels) or set one of the two"
            )
        return list(known or ())
    before = len(faults)
    lines = read_lines(folder, CLASS_NAMES, faults)
    if not lines and len(faults) == before:
        faults.append(f"{CLASS_NAMES}: empty, expected a class name on each line")
    faults += name_faults([(f"{CLASS_NAMES}:{number}", line) for number, line in enumerate(lines, 1)])
    return [class_name(line) for line in lines]
