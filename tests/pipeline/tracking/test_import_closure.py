"""A step's sources are what its modules import: no more, and no less."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.tracking import import_closure as module
from pipeline.tracking.import_closure import import_closure, imported_names, is_registry, modules_sha256

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module of a repository of its own: ``write("pipeline.a", "import pipeline.b")``."""

    def written(name: str, source: str) -> None:
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        import_closure.cache_clear()
        modules_sha256.cache_clear()

    monkeypatch.setattr(module, "ROOT", tmp_path)
    written("hst.leaf", "VALUE = 1")
    written("pipeline.middle", "from hst.leaf import VALUE")
    written("pipeline.top", "def work():\n    from pipeline import middle")
    written("pipeline.other", "import hst.leaf")
    yield written
    import_closure.cache_clear()
    modules_sha256.cache_clear()


def test_the_reading_of_imports_finds_every_kind() -> None:
    source = "import a.b\nfrom c import d\ndef f():\n    import e\n    importlib.import_module('g.h')\n"
    assert imported_names(source) == {"a.b", "c.d", "e", "g.h"}


def test_what_only_a_type_checker_imports_is_not_used_at_run_time() -> None:
    source = "if TYPE_CHECKING:\n    import a\nelse:\n    import b\n"
    assert imported_names(source) == {"a", "b"}
    assert imported_names(source, at_run_time=True) == {"b"}


def test_imports_are_followed_to_the_end_and_no_further(write: Write) -> None:
    assert list(import_closure(("pipeline.top",))) == ["hst.leaf", "pipeline.middle", "pipeline.top"]


def test_a_change_three_imports_down_changes_the_hash(write: Write) -> None:
    before = modules_sha256(("pipeline.top",))
    write("hst.leaf", "VALUE = 2")
    assert modules_sha256(("pipeline.top",)) != before


def test_a_change_in_what_is_not_imported_changes_nothing(write: Write) -> None:
    before = modules_sha256(("pipeline.top",))
    write("pipeline.other", "VALUE = 2")
    write("hst.baselines.lora", "VALUE = 3")
    assert modules_sha256(("pipeline.top",)) == before


def test_a_new_line_in_a_registry_changes_nothing_but_for_who_uses_it(write: Write) -> None:
    write("hst.methods", 'METHODS = {"hst": "hst.leaf:build"}')
    write("pipeline.top", "from hst.methods import METHODS\nfrom pipeline import middle")
    before, used = modules_sha256(("pipeline.top",)), modules_sha256(("pipeline.top", "hst.leaf"))
    write("hst.methods", 'METHODS = {"hst": "hst.leaf:build", "lora": "hst.baselines.lora:build"}')
    write("hst.baselines.lora", "VALUE = 3")
    assert modules_sha256(("pipeline.top",)) == before
    assert modules_sha256(("pipeline.top", "hst.leaf")) == used
    assert modules_sha256(("pipeline.top", "hst.baselines.lora")) != used


def test_rooms_that_carry_bytes_and_lines_decide_nothing(write: Write) -> None:
    write("pipeline.storage.files", "import hst.leaf")
    write("pipeline.top", "from pipeline.storage.files import read")
    assert list(import_closure(("pipeline.top",))) == ["pipeline.top"]


def test_the_imports_of_a_package_of_somebody_else_are_followed_within_it(write: Write) -> None:
    write("theirs.metric", "VALUE = 1")
    write("theirs.kind", "from theirs import metric")
    before = modules_sha256(("pipeline.top", "theirs.kind"))
    write("theirs.metric", "VALUE = 2")
    assert modules_sha256(("pipeline.top", "theirs.kind")) != before


def test_a_module_alone_counts_without_its_imports(write: Write) -> None:
    before = modules_sha256(("pipeline.other",), ("pipeline.top",))
    write("pipeline.middle", "from hst.leaf import VALUE as OTHER")
    assert modules_sha256(("pipeline.other",), ("pipeline.top",)) == before
    write("pipeline.top", "pass")
    assert modules_sha256(("pipeline.other",), ("pipeline.top",)) != before


def test_a_module_that_is_not_there_is_named(write: Write) -> None:
    with pytest.raises(FileNotFoundError, match=r"pipeline\.absent"):
        import_closure(("pipeline.absent",))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Doc."""\nfrom __future__ import annotations\nA: dict[str, str] = {"a": "b:c"}\n"""What it is."""\n', True),
        ('A = {"a": b}', False),
        ('A = {"a": "b"}\ndef f(): pass', False),
        ("import a", False),
        ("", False),
    ],
)
def test_a_registry_is_one_literal_dict_of_texts(source: str, expected: bool) -> None:
    assert is_registry(source) is expected
