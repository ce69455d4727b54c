"""Tables of paths and labels in csv and parquet."""

import csv
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.sources import DataError, Source, open_source
from pipeline.tasks.catalogue import Task

Rows = list[tuple[str, object, str]]
Write = Callable[[Path, Rows], None]


def write_csv(folder: Path, rows: Rows) -> None:
    with open(folder / "samples.csv", "w", newline="") as file:
        csv.writer(file).writerows([("split", "path", "photographer", "label"), *((s, p, "x", y) for p, y, s in rows)])


def write_parquet(folder: Path, rows: Rows) -> None:
    paths, labels, splits = (list(column) for column in zip(*rows, strict=True))
    table = pa.table({"split": splits, "path": paths, "photographer": ["x"] * len(rows), "label": labels})
    pq.write_table(table, folder / "samples.parquet")


both = pytest.mark.parametrize("write", [write_csv, write_parquet])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 0.jpg to 8.jpg in a folder whose name has a space and a comma."""
    folder = tmp_path / "tiny"
    (folder / "my images, 1").mkdir(parents=True)
    for i in range(9):
        (folder / f"my images, 1/{i}.jpg").write_bytes(b"")
    return folder


def rows(label: Callable[[int], object]) -> Rows:
    return [(f"my images, 1/{i}.jpg", label(i), ("train", "val", "test")[i // 3]) for i in range(9)]


def found(source: Source) -> dict[str, list[tuple[str, int]]]:
    return {split: [(Path(s.path).stem, s.label) for s in samples] for split, samples in source.splits.items()}


def faults(folder: Path, task: Task) -> list[str]:
    with pytest.raises(DataError) as error:
        open_source(str(folder), task)
    return error.value.faults


@both
def test_names_of_classes_are_those_of_train_in_alphabetical_order(write: Write, folder: Path, task: Task) -> None:
    write(folder, rows(lambda i: ("newt", "cat", "great tit")[i % 3]))
    source = open_source(str(folder), task)
    assert (source.layout, source.class_names) == ("table", ["cat", "great tit", "newt"])
    expected = {"train": [2, 0, 1], "val": [2, 0, 1], "test": [2, 0, 1]}
    assert found(source) == {
        split: [(str(3 * n + i), label) for i, label in enumerate(labels)]
        for n, (split, labels) in enumerate(expected.items())
    }


@both
def test_numbers_are_labels_and_classnames_txt_says_what_of(write: Write, folder: Path, task: Task) -> None:
    write(folder, rows(lambda i: i % 3))
    assert open_source(str(folder), task).class_names == ["0", "1", "2"]
    (folder / "classnames.txt").write_text("newt\ncat\ngreat tit\nwolf\n")
    source = open_source(str(folder), task)
    assert source.class_names == ["newt", "cat", "great tit", "wolf"]
    assert [label for _, label in found(source)["train"]] == [0, 1, 2]


@both
def test_numbers_that_are_names_of_classes_are_taken_for_these(write: Write, folder: Path, task: Task) -> None:
    write(folder, rows(lambda i: str(1990 + i % 3)))
    assert "label 1990 is out of range; 3 classes: 0 to 2" in faults(folder, task)[0]
    (folder / "classnames.txt").write_text("1992\n1991\n1990\n")
    assert [label for _, label in found(open_source(str(folder), task))["train"]] == [2, 1, 0]


@both
def test_every_faulty_row_is_told_with_its_number(write: Write, folder: Path, task: Task) -> None:
    (folder.parent / "secret.jpg").write_bytes(b"")
    table = rows(lambda i: ("newt", "cat", "great tit")[i % 3])
    table[3] = ("my images, 1/3.jpg", "cat", "validation")
    table[4] = ("my images, 1/4.jpg", "wolf", "val")
    table[5] = ("../secret.jpg", "cat", "val")
    table[6] = (str(folder.parent / "secret.jpg"), "cat", "test")
    table[7] = ("my images, 1/0.jpg", "cat", "test")
    table[8] = ("my images, 1/none.jpg", "", "test")
    write(folder, table)
    name, header = ("samples.csv", 1) if write is write_csv else ("samples.parquet", 0)
    expected = [
        (4, "split 'validation', expected one of train, val, test"),
        (5, "label 'wolf' is none of the 3 classes"),
        (6, "'../secret.jpg' leads out of"),
        (7, "is an absolute path; give paths relative to"),
        (8, f"'my images, 1/0.jpg' stands in {name}:{1 + header} already"),
        (9, "has no label"),
    ]
    told = faults(folder, task)
    assert len(told) == len(expected)
    for fault, (row, part) in zip(told, expected, strict=True):
        assert fault.startswith(f"{name}:{row + header}: ")
        assert part in fault


def test_a_csv_without_a_column_or_with_one_twice_is_refused(folder: Path, task: Task) -> None:
    (folder / "samples.csv").write_text("path,label,path\na,b,c\n")
    fault = "samples.csv: has the columns path, label, path, and so path 2 times, split 0 times; expected each once"
    assert fault in faults(folder, task)
    (folder / "samples.csv").write_text("")
    assert faults(folder, task)[0].startswith("samples.csv: has the columns none")


def test_rows_of_other_lengths_and_texts_that_are_none_are_told(folder: Path, task: Task) -> None:
    (folder / "samples.csv").write_text("path,label,split\na,b\n\nmy images, 1/0.jpg,0,train\n")
    told = faults(folder, task)
    assert told[:2] == ["samples.csv:2: has 2 fields, the header 3", "samples.csv:4: has 4 fields, the header 3"]
    (folder / "samples.csv").write_text('path,label,split\n"a"b,0,train\n')
    assert faults(folder, task)[0].startswith("samples.csv: line 2: ")
    (folder / "samples.csv").write_bytes(b"path,label,split\n\xff,0,train\n")
    assert faults(folder, task)[0].startswith("samples.csv:2: not a UTF-8 text: byte 17 of the file is 0xff")


def test_parquet_columns_of_other_types_and_empty_values_are_told(folder: Path, task: Task) -> None:
    table = pa.table({"path": [b"a"], "label": [1.5], "split": ["train"]})
    pq.write_table(table, folder / "samples.parquet")
    fault = "samples.parquet: path is binary, label is double; expected texts, for label also whole numbers"
    assert fault in faults(folder, task)
    table = pa.table({"path": ["my images, 1/0.jpg", None], "label": [0, None], "split": ["train", "test"]})
    pq.write_table(table, folder / "samples.parquet")
    assert faults(folder, task) == ["samples.parquet:2: has no path, label"]
    (folder / "samples.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    assert faults(folder, task)[0].startswith("samples.parquet: no readable parquet file")


def test_categories_are_texts(folder: Path, task: Task) -> None:
    paths, labels, splits = zip(*rows(lambda i: "ab"[i % 2]), strict=True)
    columns = {"path": list(paths), "label": pa.array(labels).dictionary_encode(), "split": list(splits)}
    pq.write_table(pa.table(columns), folder / "samples.parquet")
    assert open_source(str(folder), task).class_names == ["a", "b"]


def test_two_tables_are_one_too_many(folder: Path, task: Task) -> None:
    write_csv(folder, rows(lambda i: i % 3))
    write_parquet(folder, rows(lambda i: i % 3))
    assert faults(folder, task) == ["samples.csv and samples.parquet are both there; keep the one to be read"]


def changed(table: Rows, number: int, **values: object) -> Rows:
    path, label, split = table[number]
    row = {"path": path, "label": label, "split": split} | values
    return [*table[:number], (str(row["path"]), row["label"], str(row["split"])), *table[number + 1 :]]


@both
def test_space_around_values_and_the_form_of_letters_make_no_class(write: Write, folder: Path, task: Task) -> None:
    names = ("e\N{COMBINING ACUTE ACCENT}meu", "cat ", "\N{LATIN SMALL LETTER E WITH ACUTE}meu", " cat")
    table = changed(rows(lambda i: names[i % 4]), 4, path=" my images, 1/4.jpg ", split="val ")
    write(folder, table)
    source = open_source(str(folder), task)
    assert source.class_names == ["cat", names[2]]
    assert found(source)["val"] == [("3", 0), ("4", 1), ("5", 0)]


@both
@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("Cat", "'Cat' (b'Cat') and 'cat' (b'cat', {}) differ by case alone"),
        ("cat\u200b", "(b'cat\\xe2\\x80\\x8b') and 'cat' (b'cat', {}) differ by case, leading zeros, white space or"),
    ],
)
def test_labels_that_look_alike_are_a_fault_though_they_are_of_two_splits(
    label: str, message: str, write: Write, folder: Path, task: Task
) -> None:
    write(folder, changed(rows(lambda i: ("cat", "dog")[i % 2]), 4, label=label))
    name = "samples.csv:2" if write is write_csv else "samples.parquet:1"
    assert message.format(name) in faults(folder, task)[0]
    (folder / "classnames.txt").write_text("cat\ndog\n")
    assert message.format("classnames.txt") in faults(folder, task)[0]


def test_numbers_that_differ_by_leading_zeros_are_a_fault(folder: Path, task: Task) -> None:
    write_csv(folder, changed(rows(lambda i: i % 3), 4, label="01"))
    (fault,) = faults(folder, task)
    assert fault.startswith("samples.csv:6: '01' (b'01') and '1' (b'1', samples.csv:3) differ by leading zeros alone")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_tables_from_windows_are_read(encoding: str, folder: Path, task: Task) -> None:
    header = "Path , LABEL,Split,Photographer"
    lines = [f"my images, 1\\{i}.jpg|émeu {i % 2}|{('train', 'val', 'test')[i // 3]}|x" for i in range(9)]
    text = "\r\n".join([header, *(",".join(f'"{value}"' for value in line.split("|")) for line in lines), ""])
    (folder / "samples.csv").write_bytes(text.encode(encoding))
    source = open_source(str(folder), task)
    assert source.class_names == ["émeu 0", "émeu 1"]
    assert [stem for stem, _ in found(source)["test"]] == ["6", "7", "8"]


def test_columns_of_a_parquet_file_may_be_in_any_case(folder: Path, task: Task) -> None:
    paths, labels, splits = zip(*rows(lambda i: "ab"[i % 2]), strict=True)
    table = pa.table({"PATH": list(paths), " Label": list(labels), "Split": list(splits)})
    pq.write_table(table, folder / "samples.parquet")
    assert open_source(str(folder), task).class_names == ["a", "b"]
    pq.write_table(table.append_column("path", pa.array(paths)), folder / "samples.parquet")
    assert "and so path 2 times; expected each once" in faults(folder, task)[0]
