"""The champion rule: when a new version takes an alias by itself. The rule reads only the versions' tags.

A new version takes the alias only if it is strictly better than its holder, and if the two are comparable. A tie keeps
the holder, so that noise of a few images does not move the alias, and so that the order of two writers does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.registry.version_tags import Facts
from pipeline.tasks.kinds import TOP1
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
Numbered = tuple[int, Tags]
"""The number of a version and its tags."""


def aliases_of(tags: Tags) -> list[str]:
    """The aliases that a version may have: the one among the versions of its backbone, if that is known, and CHAMPION.

    The champion's comes last: where a writer is killed between the two, nothing has changed for people yet.
    """
    identity = Facts.of(tags).backbone_identity
    return [CHAMPION] if identity is None else [f"{CHAMPION}-{identity[:12]}", CHAMPION]


def is_ours(tags: Tags) -> bool:
    """Whether a version is a light checkpoint that was registered here; others can be made by hand in MLflow."""
    return "sha256" in tags


def is_fit(tags: Tags) -> bool:
    """Whether a version could take an alias by itself."""
    return not _unfit(tags)


def decide(new: Tags, holder: Numbered | None) -> tuple[bool, str]:
    """Whether a new version takes an alias by itself, and why.

    Args:
        new: the new version's tags.
        holder: number and tags of the version that has the alias; None where no version has it.
    """
    if unfit := _unfit(new):
        return False, unfit
    if holder is None:
        return True, "first with a val result"
    number, tags = holder
    if not is_ours(tags):
        return False, f"not comparable with version {number}, which is no light checkpoint of this registry"
    if different := differences(new, tags):
        return False, f"not comparable with version {number}: other {', '.join(different)}"
    facts, before = Facts.of(new), Facts.of(tags)
    measure = facts.measure
    if before.val is None:
        why = f"val that can be read ({before.fault_of('val')})" if before.fault_of("val") else "val result"
        return False, f"version {number} has no {why} to compare with"
    assert facts.val is not None
    if facts.val == before.val:
        return False, f"val {close(measure, facts.val)} equals that of version {number}, which keeps the alias"
    takes = measure.gain(facts.val) > measure.gain(before.val)
    relation = "better than" if takes else "worse than"
    margin = _margin(facts, before) if measure == TOP1 else ""
    ours, theirs = close(measure, facts.val), close(measure, before.val)
    return takes, f"val {ours} is {relation} {theirs} of version {number}{margin}"


def best(holder: Numbered | None, others: Sequence[Numbered]) -> int | None:
    """The number of the version that should hold an alias: the holder, or the best of those that may take it from it.

    Of equal ones it is the earliest. Without a holder, the earliest version that may hold an alias stands for one.
    """
    for number, tags in sorted(others, key=lambda one: one[0]):
        if decide(tags, holder)[0]:
            holder = (number, tags)
    return None if holder is None else holder[0]


def _unfit(new: Tags) -> str:
    """Why a version takes no alias by itself, whoever holds it; empty if it may."""
    facts = Facts.of(new)
    if facts.val is None:
        fault = facts.fault_of("val")
        return f"no val result{f' that can be read ({fault})' if fault else ''}: never promoted by itself"
    unknown = [label for tag, label in COMPARABLE.items() if tag not in new]
    return f"no {', '.join(unknown)} recorded: never promoted by itself" if unknown else ""


def differences(new: Tags, holder: Tags) -> list[str]:
    """Why two versions cannot be compared, in people's words."""
    different = [label for tag, label in COMPARABLE.items() if holder.get(tag) != new.get(tag)]
    ours, theirs = Facts.of(new), Facts.of(holder)
    if ours.kind != theirs.kind:
        different.append("kind of task")
    if ours.measure != theirs.measure:
        different.append("metric")
    return different


def _margin(new: Facts, before: Facts) -> str:
    """By how many images two fractions of val differ, and what chance alone does to such fractions.

    Both are measured on the same images, so one standard error is that of a share of them: sqrt(p (1 - p) / n), where p
    is the mean of the two.
    """
    count = new.val_images or before.val_images
    if count is None or new.val is None or before.val is None:
        return ""
    difference = abs(new.val - before.val)
    share = (new.val + before.val) / 2
    error = math.sqrt(max(0.0, share * (1 - share)) / count)
    size = "within" if difference <= error else "more than"
    return f", by {round(difference * count):,} of {count:,} images, {size} one standard error ({error:.2%})"
