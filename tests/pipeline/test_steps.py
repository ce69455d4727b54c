import json
from pathlib import Path

import pytest

from pipeline import steps as steps_module
from pipeline.steps import Steps, fingerprint


def test_a_step_is_worked_once_for_the_same_inputs(tmp_path: Path) -> None:
    calls = []

    def work(key: str) -> dict[str, object]:
        calls.append(key)
        return {"answer": len(calls)}

    first = Steps(str(tmp_path), "vtab-dtd").run("train", {"seed": 0}, work)
    again = Steps(str(tmp_path), "vtab-dtd").run("train", {"seed": 0}, work)
    other = Steps(str(tmp_path), "vtab-dtd").run("train", {"seed": 1}, work)
    assert (first, again, other) == (({"answer": 1}, False), ({"answer": 1}, True), ({"answer": 2}, False))
    assert calls == [fingerprint("train", {"seed": 0}), fingerprint("train", {"seed": 1})]


def test_a_step_that_fails_leaves_no_record(tmp_path: Path) -> None:
    def fail(key: str) -> dict[str, object]:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        Steps(str(tmp_path), "vtab-dtd").run("train", {}, fail)
    assert Steps(str(tmp_path), "vtab-dtd").find("train", fingerprint("train", {})) is None


def test_changed_sources_make_a_finished_step_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Steps(str(tmp_path), "vtab-dtd").run
    assert run("train", {}, lambda key: {"n": 1}) == ({"n": 1}, False)
    monkeypatch.setattr(steps_module, "source_sha256", lambda places: "other code")
    assert run("train", {}, lambda key: {"n": 2}) == ({"n": 2}, False)


def test_the_result_that_counts_is_the_one_in_storage(tmp_path: Path) -> None:
    """Two drivers that work on one step agree on the record that was put first."""
    steps = Steps(str(tmp_path), "vtab-dtd")

    def work(key: str) -> dict[str, object]:
        Steps(str(tmp_path), "vtab-dtd").run("train", {}, lambda key: {"by": "the other"})
        return {"by": "us"}

    assert steps.run("train", {}, work)[0] == {"by": "the other"}


def test_a_record_of_another_fingerprint_is_refused(tmp_path: Path) -> None:
    steps = Steps(str(tmp_path), "vtab-dtd")
    key = fingerprint("train", {})
    path = Path(steps.file(steps.name("train", key, ".json")))
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"fingerprint": "0" * 64, "result": {}}))
    with pytest.raises(ValueError, match="move the file away"):
        steps.find("train", key)
