"""The champion rule: which version takes an alias by itself, and why."""

import pytest

from pipeline.registry.champion import decide
from pipeline.registry.version_tags import Facts
from pipeline.tasks.kinds import Measure

TAGS = {
    "sha256": "f" * 64,
    "backbone_identity": "ab" * 32,
    "data_manifest_sha256": "{}",
    "image_size": "112",
    "protocol": "selection+final",
}
POSE = {"kind": "pose", "method": "hst", "metric": "mae", "metric_unit": "px", "higher_is_better": "false"}


@pytest.mark.parametrize(("val", "takes", "relation"), [("0.2", True, "better than"), ("0.22", False, "worse than")])
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
    assert found == (True, "val 62.50% is better than 50.00% of version 1")


def test_a_measure_comes_back_from_its_tags() -> None:
    assert Facts.of(POSE).measure == Measure(name="mae", unit="px", higher_is_better=False)
    plain = Measure(name="dice", unit="")
    assert Facts.of({"metric": "dice", "metric_unit": "", "higher_is_better": "true"}).measure == plain
    assert Facts.of({"metric": "dice", "higher_is_better": "true"}).measure == plain


@pytest.mark.parametrize("higher", ["true", "false"])
def test_a_tie_keeps_the_champion(higher: str) -> None:
    tags = {**TAGS, "metric": "score", "metric_unit": "", "higher_is_better": higher, "val_score": "0.8125"}
    assert decide(tags, (1, tags)) == (False, "val 0.8125 equals that of version 1, which keeps the alias")


@pytest.mark.parametrize(
    ("val", "images", "margin"),
    [
        ("0.875", "16", ", by 1 of 16 images, within one standard error (9.08%)"),
        ("1.0", "16", ", by 3 of 16 images, more than one standard error (7.29%)"),
        ("0.875", "1600", ", by 100 of 1,600 images, more than one standard error (0.91%)"),
        ("0.75", "16", ", by 1 of 16 images, within one standard error (10.33%)"),
        ("0.875", None, ""),
    ],
)
def test_the_reason_says_by_how_many_images_and_what_chance_does(val: str, images: str | None, margin: str) -> None:
    count = {} if images is None else {"val_images": images}
    reason = decide({**TAGS, **count, "val_top1": val}, (1, {**TAGS, "val_top1": "0.8125"}))[1]
    relation = "better" if float(val) > 0.8125 else "worse"
    assert reason == f"val {float(val):.2%} is {relation} than 81.25% of version 1{margin}"
