"""Reads text files beside the images: lines, and the names of the classes."""

from collections.abc import Sequence

from pipeline.storage import files

CLASS_NAMES = "classnames.txt"


def read_lines(uri: str, faults: list[str]) -> list[str]:
    """The lines of a UTF-8 text, local or remote; empty, with a fault, if it is no text."""
    try:
        return files.read_bytes(uri).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        faults.append(f"{uri.rpartition('/')[2]}: not a UTF-8 text ({error.reason} at byte {error.start})")
        return []


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
    names = [name.strip() for name in read_lines(files.join(folder, CLASS_NAMES), faults)]
    faults += [f"{CLASS_NAMES}:{i}: empty line, expected a class name" for i, name in enumerate(names, 1) if not name]
    if not names:
        faults.append(f"{CLASS_NAMES}: empty, expected a class name on each line")
    return names
