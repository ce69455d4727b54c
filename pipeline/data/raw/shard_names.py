"""Names of the tars of a split of a foreign WebDataset, from `<split>/nshards.txt` or `<split>/shards.txt`.

`nshards.txt` (as clip_benchmark writes it) holds a number n: the tars are 0.tar to n-1.tar. `shards.txt` has one name
per line, such as `shard-000000.tar`, or a range of names, such as `shard-{000000..000009}.tar`. Folders are not
searched for tars.
"""

import re
from collections import Counter

from pipeline.data.raw.text_lists import read_lines
from pipeline.storage import files

COUNT, NAMES = "nshards.txt", "shards.txt"
MAX_TARS = 100_000


def has_shard_names(folder: str, split: str) -> bool:
    """Whether a split, local or remote, has one of the two files."""
    return any(files.exists(files.join(folder, split, name)) for name in (COUNT, NAMES))


def read_shard_names(folder: str, split: str, faults: list[str]) -> list[str]:
    """Names of a split's tars, relative to the split's folder, in order; empty if there is a fault."""
    there = [name for name in (COUNT, NAMES) if files.exists(files.join(folder, split, name))]
    if len(there) > 1:
        faults.append(f"{split}/: has {COUNT} and {NAMES}; keep the one to be read")
        return []
    where = f"{split}/{there[0]}"
    before = len(faults)
    lines = read_lines(folder, where, faults)
    names: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                names += _counted(line.strip()) if there[0] == COUNT else expand_range(line.strip())
        except ValueError as error:
            faults.append(f"{where}:{number}: {error}")
    faults += [f"{where}: names {name} {count} times" for name, count in Counter(names).items() if count > 1]
    if len(faults) == before and not names:
        faults.append(f"{where}: names no tar")
    return names if len(faults) == before else []


def expand_range(pattern: str) -> list[str]:
    """Expands `shard-{008..011}.tar` to the names in the range; a name without braces stays unchanged.

    Raises:
        ValueError: The braces are not one ascending range, the range is too long, or the name leads out of its folder.
    """
    pattern = pattern.replace("\\", "/")  # a list that was made on Windows
    if pattern.startswith("/") or "://" in pattern or ".." in pattern.split("/"):
        raise ValueError(f"{pattern!r} is no name of a tar below the split's folder")
    if "{" not in pattern and "}" not in pattern:
        return [pattern]
    match = re.fullmatch(r"([^{}]*)\{([0-9]{1,9})\.\.([0-9]{1,9})\}([^{}]*)", pattern)
    if not match:
        raise ValueError(f"{pattern!r}: expected one range of numbers, as in shard-{{000000..000009}}.tar")
    head, first, last, tail = match.groups()
    padded = len(first) if first != str(int(first)) or last != str(int(last)) else 0
    if padded and len(last) != len(first):
        raise ValueError(f"{pattern!r}: {first} and {last} have leading zeros and are not of one length")
    count = int(last) - int(first) + 1
    if not 1 <= count <= MAX_TARS:
        raise ValueError(f"{pattern!r}: stands for {count} names; expected 1 to {MAX_TARS}")
    return [f"{head}{number:0{padded}d}{tail}" for number in range(int(first), int(last) + 1)]


def _counted(text: str) -> list[str]:
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= MAX_TARS:
        raise ValueError(f"{text!r}: expected the number of tars, 1 to {MAX_TARS}")
    return [f"{number}.tar" for number in range(int(text))]
