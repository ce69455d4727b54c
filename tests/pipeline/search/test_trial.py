"""One trial: what it tells, and that it goes on from what it saved as if nothing had happened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hst.backbone import Backbone
from pipeline.search.trial import run_trial
from pipeline.training import checkpoints
from pipeline.training.loop import fit
from pipeline.training.stopped import Stopped
from pipeline.training.task_run import NotFiniteError
from pipeline.training.unit import RunSpec, build_run
from pipeline.training.workers import Workers

Rows = list[dict[str, Any]]
# Of the machine, and not of the training.
TIMED = {"images_per_second"}


def run(spec: RunSpec, backbone: Backbone, folder: Path, *, stop_after_rows: int = 10**6, **options: Any) -> Rows:
    rows: Rows = []
    facts: list[dict[str, Any]] = []

    def tell(new: Rows, about: dict[str, Any]) -> None:
        rows.extend(new)
        facts.append(about)

    try:
        run_trial(
            spec,
            backbone,
            Workers(),
            folder=str(folder),
            attempt=options.pop("attempt", "a"),
            tell=tell,
            is_stopping=lambda: len(rows) >= stop_after_rows,
            **options,
        )
    except Stopped:
        assert len(rows) >= stop_after_rows
    assert all(about["parameters"] > 0 and about["device_seconds"] > 0 for about in facts)
    return rows


def untimed(rows: Rows) -> Rows:
    return [{name: value for name, value in row.items() if name not in TIMED} for row in rows]


@pytest.fixture
def expected(tiny_spec: Callable[..., RunSpec], tiny_backbone: Backbone) -> Rows:
    (state,) = fit(
        [build_run(tiny_spec(epochs=5), tiny_backbone.double(), Workers())], workers=Workers(), report=lambda *_: None
    )
    return state.history


def test_a_trial_is_a_selection_run(
    expected: Rows, tiny_spec: Callable[..., RunSpec], tiny_backbone: Backbone, tmp_path: Path
) -> None:
    rows = run(tiny_spec(epochs=5), tiny_backbone.double(), tmp_path)
    assert untimed(rows) == untimed(expected)
    assert all("val/top1" in row and "test/top1" not in row for row in rows)
    assert list(tmp_path.iterdir()) == [], "it took no time, and was not saved"


def test_a_stopped_trial_goes_on_to_the_same_rows(
    expected: Rows, tiny_spec: Callable[..., RunSpec], tiny_backbone: Backbone, tmp_path: Path
) -> None:
    spec, backbone = tiny_spec(epochs=5), tiny_backbone.double()
    first = run(spec, backbone, tmp_path, stop_after_rows=2)
    assert len(first) == 2
    saved = checkpoints.find(str(tmp_path))
    assert saved is not None
    assert saved.progress >= (2, 0)
    again = run(spec, backbone, tmp_path, attempt="b")
    assert untimed(again) == untimed(expected), "those before the stop are told again"


def test_one_save_replaces_the_one_before_and_leaves_those_of_others(
    tiny_spec: Callable[..., RunSpec], tiny_backbone: Backbone, tmp_path: Path
) -> None:
    spec, backbone = tiny_spec(epochs=5), tiny_backbone.double()
    run(spec, backbone, tmp_path, stop_after_rows=1)
    run(spec, backbone, tmp_path, attempt="b", stop_after_rows=3, seconds_between_saves=0)
    saved = sorted(path.name.partition("-")[0] for path in tmp_path.iterdir() if any(path.iterdir()))
    assert saved == ["a", "b"], "the other start may be a newer driver's"


def test_a_trial_whose_loss_is_no_number_says_so_in_a_way_of_its_own(
    tiny_spec: Callable[..., RunSpec], tiny_backbone: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(NotFiniteError, match="training loss of epoch"):
        run(tiny_spec(epochs=4, learning_rate=1e30, precision="float32"), tiny_backbone, tmp_path)
