"""The champion rule: which version takes an alias by itself, and why."""

import pytest

from pipeline.registry.champion import decide
from pipeline.registry.version_tags import measure_of
from pipeline.tasks.kinds import Measure

TAGS = {
    "backbone_identity": "ab" * 32,
    "data_manifest_sha256": "{}",
    "image_size": "112",
    "protocol": "selection+final",
}
POSE = {"kind": "pose", "method": "hst", "metric": "mae", "metric_unit": "px", "higher_is_better": "false"}


@pytest.mark.parametrize(("val", "takes", "relation"), [("0.2", True, "at least as good as"), ("0.22", False, "above")])
def test_where_lower_is_better_the_lower_val_is_promoted(val: str, takes: bool, relation: str) -> None:
    holder = (1, {**TAGS, **POSE, "val_mae": "0.213"})
    assert decide({**TAGS, **POSE, "val_mae": val}, holder) == (
        takes,
        f"val {val} px is {relation} 0.213 px of version 1",
    )


def test_a_version_by_another_metric_or_of_another_kind_is_not_compared() -> None:
    old = (3, {**TAGS, "val_top1": "0.5"})
    new = {**TAGS, **POSE, "val_mae": "0.1", "val_top1": "0.9"}
    assert decide(new, old) == (False, "not comparable with version 3: other kind of task, metric")
    other_kind = {**TAGS, "kind": "retrieval", "metric": "top1", "metric_unit": "%", "higher_is_better": "true"}
    expected = (False, "not comparable with version 3: other kind of task")
    assert decide({**other_kind, "val_top1": "0.9"}, old) == expected


def test_a_version_without_a_val_by_its_own_metric_is_never_promoted() -> None:
    assert decide({**TAGS, **POSE, "val_top1": "0.9"}, None) == (False, "no val result: never promoted by itself")


def test_versions_registered_before_they_named_a_measure_are_compared_by_top1() -> None:
    new = {**TAGS, "kind": "classification", "metric": "top1", "metric_unit": "%", "higher_is_better": "true"}
    found = decide({**new, "val_top1": "0.625"}, (1, {**TAGS, "val_top1": "0.5"}))
    assert found == (True, "val 62.50% is at least as good as 50.00% of version 1")


def test_a_measure_comes_back_from_its_tags() -> None:
    assert measure_of(POSE) == Measure(name="mae", unit="px", higher_is_better=False)
    plain = Measure(name="dice", unit="")
    assert measure_of({"metric": "dice", "metric_unit": "", "higher_is_better": "true"}) == plain
    assert measure_of({"metric": "dice", "higher_is_better": "true"}) == plain
