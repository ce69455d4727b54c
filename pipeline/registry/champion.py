"""The champion rule: when a new version takes an alias by itself. The rule reads only the versions' tags."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.registry.version_tags import kind_of, measure_of, result_of
from pipeline.tasks.measure_text import close

CHAMPION = "champion"
COMPARABLE = {
    "backbone_identity": "backbone",
    "data_manifest_sha256": "data",
    "image_size": "image size",
    "protocol": "protocol",
}
"""Tags that must equal the champion's before results may be compared, and what people call them."""

Tags = Mapping[str, str]


def backbone_alias(tags: Tags) -> str:
    """The champion alias among the versions of the same backbone."""
    return f"{CHAMPION}-{tags['backbone_identity'][:12]}"


def decide(new: Tags, holder: tuple[int, Tags] | None) -> tuple[bool, str]:
    """Whether a new version takes an alias by itself, and why.

    Args:
        new: the new version's tags.
        holder: number and tags of the version that has the alias; None where no version has it.
    """
    val = result_of(new, "val")
    if val is None:
        return False, "no val result: never promoted by itself"
    unknown = [label for tag, label in COMPARABLE.items() if tag not in new]
    if unknown:
        return False, f"no {', '.join(unknown)} recorded: never promoted by itself"
    if holder is None:
        return True, "first with a val result"
    number, tags = holder
    if different := _differences(new, tags):
        return False, f"not comparable with version {number}: other {', '.join(different)}"
    before = result_of(tags, "val")
    if before is None:
        return False, f"version {number} has no val result to compare with"
    measure = measure_of(new)
    takes = measure.gain(val) >= measure.gain(before)
    worse = "below" if measure.higher_is_better else "above"
    relation = "at least as good as" if takes else worse
    return takes, f"val {close(measure, val)} is {relation} {close(measure, before)} of version {number}"


def _differences(new: Tags, holder: Tags) -> list[str]:
    """Why two versions cannot be compared, in people's words."""
    different = [label for tag, label in COMPARABLE.items() if holder.get(tag) != new[tag]]
    if kind_of(new) != kind_of(holder):
        different.append("kind of task")
    if measure_of(new) != measure_of(holder):
        different.append("metric")
    return different
