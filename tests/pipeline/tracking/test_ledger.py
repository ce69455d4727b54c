"""The ledger on disk: with a torn or damaged line, and on a full disk."""

import json
import os
from pathlib import Path

import pytest

from pipeline.tracking.ledger import Ledger, LedgerError


def test_a_ledger_drops_a_torn_last_line_and_keeps_the_rest(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in range(3):
        ledger.append({"n": number})
    ledger.close()
    whole = ledger.path.read_bytes()
    end_of_second = whole.rfind(b"\n", 0, len(whole) - 1) + 1
    for cut in range(end_of_second, len(whole)):
        ledger.path.write_bytes(whole[:cut])
        again = Ledger(tmp_path)
        again.append({"n": "new"})
        assert [entry["n"] for entry in again.entries()] == [0, 1, "new"]
        again.close()


def test_a_damaged_line_in_the_middle_is_told_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text(json.dumps({"n": 0}) + "\n{broken\n" + json.dumps({"n": 2}) + "\n")
    with pytest.raises(LedgerError, match=r"ledger\.jsonl:2: damaged line"):
        list(Ledger(tmp_path).entries())


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    ledger.append({"n": 0})

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=f"^{ledger.path}: No space left on device; make room there"):
            ledger.append({"n": 1})
    ledger.append({"n": 2})
    assert [entry["n"] for entry in ledger.entries()] == [0, 2]
