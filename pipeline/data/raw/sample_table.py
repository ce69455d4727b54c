"""A table of samples, `samples.csv` or `samples.parquet`, with the columns path, label and split; others are ignored.

Paths are relative to the table's folder. A split is train, val or test. Labels are class names or, if every label is a
number, labels from 0. `classnames.txt` lists the classes in order; without it, the names are those of train in
alphabetical order. White space around the names of columns and around values is no part of them; the columns' names
may be in any case.
"""

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.data.annotations.annotation import Annotation
from pipeline.data.raw.collector import Collector, any_file
from pipeline.data.raw.text_lists import CLASS_NAMES, has_class_names, read_class_names
from pipeline.data.samples import Listing
from pipeline.data.shards.manifest import OWN_SPLITS
from pipeline.storage.text import TextError, read_text
from pipeline.tasks.class_names import alike_faults, class_name

CSV, PARQUET = "samples.csv", "samples.parquet"
COLUMNS = ("path", "label", "split")

Row = tuple[int, str, str, str]
"""Number (line of the csv file, or row of the parquet file from 1), path, label and split."""


def is_sample_table(folder: str) -> bool:
    """Whether either table exists."""
    return any_file(folder, (CSV, PARQUET))


def read_sample_table(
    folder: str, known: Sequence[str] | None, splits: Sequence[str], annotation: Annotation | None = None
) -> Listing:
    """Reads the table and checks the path of every image of these splits.

    Args:
        folder: The task's folder.
        known: Class names by label, used if labels are numbers and there is no classnames.txt.
        splits: Splits to read; rows of other splits are used only to find the classes.
        annotation: What the labels are; by default the names or numbers of classes.
    """
    listing = Listing()
    faults = listing.faults
    if any_file(folder, (CSV,)) and any_file(folder, (PARQUET,)):
        faults.append(f"{CSV} and {PARQUET} are both there; keep the one to be read")
        return listing
    name = CSV if any_file(folder, (CSV,)) else PARQUET
    path = os.path.join(folder, name)
    rows: list[Row] = []
    try:
        rows += _csv_rows(path, faults) if name == CSV else _parquet_rows(path, annotation)
    except TextError as error:
        faults.append(str(error))
    except ValueError as error:
        faults.append(f"{name}: {error}")
    read_label: Callable[[str], Any]
    if annotation is None or annotation.has_classes:
        listing.class_names, read_label = _classes(folder, known, name, rows, faults)
    else:
        read_label = annotation.parse
    collector = Collector(folder, listing, splits, annotation)
    for number, path, text, split in rows:
        where = f"{name}:{number}"
        empty = [column for column, value in zip(COLUMNS, (path, text, split), strict=True) if not value]
        if empty:
            faults.append(f"{where}: has no {', '.join(empty)}")
            continue
        if split not in OWN_SPLITS:
            faults.append(f"{where}: split {split!r}, expected one of {', '.join(OWN_SPLITS)}")
            continue
        try:
            label = read_label(text)
        except ValueError as error:
            faults.append(f"{where}: {error}")
        else:
            collector.add(split, where, path, label)
    collector.close()
    return listing


def _classes(
    folder: str, known: Sequence[str] | None, table: str, rows: list[Row], faults: list[str]
) -> tuple[list[str], Callable[[str], int]]:
    """The names of the classes, and what gives the label, from 0, for each label text in the table."""
    stand_in = [(f"{table}:{number}", label) for number, _, label, _ in rows if label]
    labels = {class_name(label) for _, label in stand_in}
    before = len(faults)
    named = read_class_names(folder, None, faults) if has_class_names(folder) else None
    numbers = bool(labels) and all(re.fullmatch("-?[0-9]{1,9}", label) for label in labels)
    if numbers and not (named is not None and labels <= set(named)):
        faults += alike_faults(stand_in)
        names = read_class_names(folder, known, faults) if named is None else named
        return names, int
    if len(faults) == before:  # names that are alike in classnames.txt are faults of that file already
        faults += alike_faults([*((CLASS_NAMES, name) for name in named or ()), *stand_in])
    names = named or sorted({class_name(label) for _, _, label, split in rows if label and split == "train"})
    label_of = {name: label for label, name in enumerate(names)}

    def read_label(text: str) -> int:
        if class_name(text) not in label_of:
            raise ValueError(f"label {text!r} is none of the {len(names)} classes")
        return label_of[class_name(text)]

    return names, read_label


def _csv_rows(path: str, faults: list[str]) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(read_text(path, CSV)), strict=True)
    try:
        header = next(reader, [])
        places = _places(header)
        for row in reader:
            if len(row) == len(header):
                path_, label, split = (row[place].strip() for place in places)
                yield reader.line_num, path_, label, split
            elif row:
                faults.append(f"{CSV}:{reader.line_num}: has {len(row)} fields, the header {len(header)}")
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def _parquet_rows(path: str, annotation: Annotation | None) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            names = [schema.names[place] for place in _places(schema.names)]
            kinds = {column: schema.field(name).type for column, name in zip(COLUMNS, names, strict=True)}
            fractions = annotation is not None and not annotation.has_classes
            wrong = [f"{name} is {kind}" for name, kind in kinds.items() if not _is_possible(kind, name, fractions)]
            if wrong:
                numbers = "numbers" if fractions else "whole numbers"
                raise ValueError(f"{', '.join(wrong)}; expected texts, for label also {numbers}")
            columns = [file.read(columns=[name]).column(0).to_pylist() for name in names]
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"no readable parquet file ({error})") from error
    for number, values in enumerate(zip(*columns, strict=True), 1):
        path_, label, split = ("" if value is None else str(value).strip() for value in values)
        yield number, path_, label, split


def _is_possible(kind: Any, column: str, fractions: bool) -> bool:
    """Whether a column may have this type; labels may be whole numbers, and ``fractions`` where that is said."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    is_number = types.is_integer(kind) or (fractions and types.is_floating(kind))
    return types.is_string(kind) or types.is_large_string(kind) or (column == "label" and is_number)


def _places(header: list[str]) -> list[int]:
    """Indices of the three columns; raises ValueError if one is missing or occurs twice."""
    names = [name.strip().lower() for name in header]
    wrong = [f"{name} {names.count(name)} times" for name in COLUMNS if names.count(name) != 1]
    if wrong:
        raise ValueError(
            f"has the columns {', '.join(header) or 'none'}, and so {', '.join(wrong)}; expected each once"
        )
    return [names.index(name) for name in COLUMNS]
