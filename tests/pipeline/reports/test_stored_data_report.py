"""Where a task's report is, and when it is made."""

from pathlib import Path

import pytest

from pipeline.data.errors import DataError
from pipeline.data.prepare import prepare_task
from pipeline.data.shards.manifest import Manifest
from pipeline.reports import stored_data_report
from pipeline.reports.stored_data_report import ensure_report, place_of_report
from pipeline.storage import files
from pipeline.tasks.catalogue import Task
from tests.pipeline.data.conftest import image_bytes


@pytest.fixture
def manifests(tmp_path: Path) -> dict[str, Manifest]:
    for split in ("train", "val", "test"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "raw/x" / split / name).mkdir(parents=True)
            for i in range(2):
                image = image_bytes((label, i, len(split)))
                (tmp_path / "raw/x" / split / name / f"{i}.png").write_bytes(image)
    task = Task(name="own-x", short_name="x", folder="x", group="demo", num_classes=2)
    return prepare_task(task, str(tmp_path / "raw"), str(tmp_path / "storage/shards"))


def test_the_report_is_beside_shards_of_our_own_and_else_in_storage_of_our_own(
    manifests: dict[str, Manifest], tmp_path: Path
) -> None:
    beside = str(tmp_path / "storage/shards/own-x/report")
    assert place_of_report(manifests, str(tmp_path / "storage"), "shown") == beside
    for other in ("stor", "elsewhere"):
        assert place_of_report(manifests, str(tmp_path / other), "shown").startswith(
            str(tmp_path / other / "reports/own-x")
        )
    ensure_report(manifests, beside, "shown")
    assert place_of_report(manifests, str(tmp_path / "elsewhere"), "shown") == beside
    assert place_of_report(manifests, str(tmp_path / "elsewhere"), "stored") != beside, "it shows other pixels"


def test_a_report_is_made_once_for_the_data_as_it_is(
    manifests: dict[str, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "report")
    warnings = ensure_report(manifests, folder, "shown")
    assert "<h1>Data of own-x</h1>" in files.read_bytes(f"{folder}/data-report.html").decode()
    for shard in manifests["test"].shards:
        Path(manifests["test"].shard_uri(shard)).unlink()
    assert ensure_report(manifests, folder, "shown") == warnings
    Path(folder, stored_data_report._MADE_OF).write_text("{}")
    with pytest.raises(DataError, match="no such shard"):
        ensure_report(manifests, folder, "shown")
