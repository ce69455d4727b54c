"""The benchmark of a search's overhead measures a small search and writes its report."""

import json
from pathlib import Path

import pytest

from pipeline.benchmarks import search_overhead


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_search_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search_overhead.main(["--output", str(tmp_path / "result.json"), "--trials", "3"]) == 0
    report = json.loads((tmp_path / "result.json").read_text())
    assert {"hardware", "versions", "trials", "first_seconds", "training_seconds_median"} <= report.keys()
    assert 0 < report["overhead_seconds_median"] <= report["overhead_seconds_most"]
    assert capsys.readouterr().out.startswith("3 trials of ")


def test_one_trial_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        search_overhead.main(["--output", str(tmp_path / "result.json"), "--trials", "1"])
