"""Text files beside the images: their lines, and the names of the classes."""

from pipeline import storage

CLASS_NAMES = "classnames.txt"


def read_lines(uri: str, faults: list[str]) -> list[str]:
    """The lines of a UTF-8 text, local or remote; none, and a fault, where it is no text."""
    try:
        return storage.read_bytes(uri).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        faults.append(f"{uri.rpartition('/')[2]}: not a UTF-8 text ({error.reason} at byte {error.start})")
        return []


def has_class_names(folder: str) -> bool:
    """Whether classnames.txt is there to say which classes there are."""
    return storage.exists(storage.join(folder, CLASS_NAMES))


def read_class_names(folder: str, num_classes: int, faults: list[str]) -> list[str]:
    """The lines of a folder's classnames.txt; where there is none, the labels themselves serve as names.

    Args:
        folder: Local or remote.
        num_classes: How many classes there are where classnames.txt does not say it.
        faults: Gains what is wrong with the file.
    """
    if not has_class_names(folder):
        return [str(label) for label in range(num_classes)]
    names = [name.strip() for name in read_lines(storage.join(folder, CLASS_NAMES), faults)]
    faults += [f"{CLASS_NAMES}:{i}: empty line, expected a class name" for i, name in enumerate(names, 1) if not name]
    if not names:
        faults.append(f"{CLASS_NAMES}: empty, expected a class name on each line")
    return names
