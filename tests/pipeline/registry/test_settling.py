"""The alias ends at the version that should have it, whoever is paused before whichever call."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.registry.champion import CHAMPION, aliases_of
from pipeline.registry.settling import REASON_TAG, promote_by_hand, settle
from tests.pipeline.registry.turns import MemoryRegistry, Turns

NAME = "vtab-dtd"
VALS = st.sampled_from(["0.25", "0.5", "0.5625", "0.625", "0.75"])
SCHEDULE = st.lists(st.integers(0, 2), max_size=60)


def tags(val: str, **changes: str) -> dict[str, str]:
    found = {
        "sha256": "f" * 64,
        "backbone_identity": "ab" * 32,
        "data_manifest_sha256": "{}",
        "image_size": "112",
        "protocol": "both",
        "val_top1": val,
        "val_images": "16",
    }
    return found | changes


def writer(version_tags: dict[str, str]) -> Callable[[Any], None]:
    def write(client: Any) -> None:
        settle(client, NAME, client.add(version_tags), lambda: None)

    return write


def with_champion(val: str) -> MemoryRegistry:
    registry = MemoryRegistry()
    writer(tags(val))(registry)
    assert registry.aliases[CHAMPION] == "1"
    return registry


def holders(registry: MemoryRegistry) -> set[str]:
    return {registry.aliases[alias] for alias in aliases_of(tags("0"))}


def best_of(registry: MemoryRegistry, numbers: list[int], otherwise: int | None = None) -> str:
    """The highest val among the numbers; of equal ones the earliest."""
    best = max(numbers, key=lambda n: (float(registry.versions[n]["val_top1"]), -n), default=otherwise)
    return str(best)


@settings(max_examples=300, deadline=None)
@given(before=VALS, vals=st.lists(VALS, min_size=2, max_size=3), schedule=SCHEDULE)
def test_the_best_version_is_champion_whoever_is_paused_where(
    before: str, vals: list[str], schedule: list[int]
) -> None:
    registry = with_champion(before)
    Turns(registry, schedule).run([writer(tags(val)) for val in vals])
    assert holders(registry) == {best_of(registry, [*registry.versions])}
    assert all(REASON_TAG in version for version in registry.versions.values())


@settings(max_examples=200, deadline=None)
@given(vals=st.lists(VALS, min_size=2, max_size=3), schedule=SCHEDULE)
def test_the_first_versions_of_a_task_may_come_together(vals: list[str], schedule: list[int]) -> None:
    registry = MemoryRegistry()
    Turns(registry, schedule).run([writer(tags(val)) for val in vals])
    assert holders(registry) == {best_of(registry, [*registry.versions])}


@settings(max_examples=200, deadline=None)
@given(vals=st.lists(VALS, min_size=2, max_size=2), schedule=SCHEDULE)
def test_what_a_person_promotes_meanwhile_stays_until_a_later_version_is_better(
    vals: list[str], schedule: list[int]
) -> None:
    """A version that is registered between the two calls of a promotion may come before or after it."""
    registry = with_champion("0.5")
    Turns(registry, schedule).run([lambda client: promote_by_hand(client, NAME, 1), *(writer(tags(v)) for v in vals)])
    chosen, last = json.loads(registry.model_tags[f"hst.by_hand.{CHAMPION}"])
    later = [n for n in registry.versions if n > last and float(registry.versions[n]["val_top1"]) > 0.5]
    assert registry.aliases[CHAMPION] in {best_of(registry, later, chosen), str(chosen)}


@settings(max_examples=200, deadline=None)
@given(vals=st.lists(VALS, min_size=3, max_size=3), schedule=SCHEDULE)
def test_versions_on_other_data_never_meet(vals: list[str], schedule: list[int]) -> None:
    registry = with_champion("0.5")
    other = tags(vals[0], data_manifest_sha256="other")
    Turns(registry, schedule).run([writer(other), *(writer(tags(val)) for val in vals[1:])])
    ours = [n for n, version in registry.versions.items() if version["data_manifest_sha256"] == "{}"]
    assert registry.aliases[CHAMPION] == best_of(registry, ours)


def test_a_writer_that_was_killed_after_a_stale_alias_is_healed_by_the_next() -> None:
    registry = with_champion("0.5")
    killed = registry.add(tags("0.5625"))
    writer(tags("0.75"))(registry)
    assert registry.aliases[CHAMPION] == "3"
    registry.aliases[CHAMPION] = str(killed)  # its last call
    writer(tags("0.25"))(registry)
    assert registry.aliases[CHAMPION] == "3"


def test_what_was_promoted_by_hand_long_ago_is_not_judged_again() -> None:
    registry = with_champion("0.5")
    writer(tags("0.75"))(registry)
    promote_by_hand(registry, NAME, 1)
    writer(tags("0.25"))(registry)
    assert registry.aliases[CHAMPION] == "1", "version 2 is better, but a person chose"
    assert "worse than 50.00% of version 1" in registry.versions[3][REASON_TAG]
    writer(tags("0.625"))(registry)
    assert registry.aliases[CHAMPION] == "4"
    assert registry.versions[4][REASON_TAG].startswith("val 62.50% is better than 50.00% of version 1, by 2 of 16")


@pytest.mark.parametrize("foreign", [{}, {"note": "made by hand"}, {"val_top1": "0.1"}])
def test_an_alias_on_a_version_that_is_not_ours_is_named_and_left(foreign: dict[str, str]) -> None:
    registry = MemoryRegistry()
    registry.aliases[CHAMPION] = str(registry.add(foreign))
    writer(tags("0.75"))(registry)
    assert registry.aliases[CHAMPION] == "1"
    assert registry.versions[2][REASON_TAG] == (
        "not comparable with version 1, which is no light checkpoint of this registry"
    )
    promote_by_hand(registry, NAME, 2)
    assert registry.aliases[CHAMPION] == "2"


@pytest.mark.parametrize("broken", ["abc", "nan", "", "81.25", "-0.5"])
def test_a_champion_whose_val_cannot_be_read_is_left_and_named(broken: str) -> None:
    registry = MemoryRegistry()
    registry.aliases[CHAMPION] = str(registry.add(tags(broken) | {REASON_TAG: "first"}))
    writer(tags("0.75"))(registry)
    assert registry.aliases[CHAMPION] == "1"
    assert f"val_top1 is {broken!r}, expected a fraction from 0 to 1" in registry.versions[2][REASON_TAG]


def test_a_version_that_lacks_a_record_takes_nothing_and_stops_nobody() -> None:
    """It stands between two writers, so that it is judged beside a version that already has the alias."""
    registry = with_champion("0.5")
    lacking = {name: value for name, value in tags("0.9").items() if name != "protocol"}
    unsettled = registry.add(lacking)
    writer(tags("0.75"))(registry)
    writer(tags("0.8"))(registry)
    settle(registry, NAME, unsettled, lambda: None)
    assert registry.aliases[CHAMPION] == "4"
    assert registry.versions[unsettled][REASON_TAG] == "no protocol recorded: never promoted by itself"


@pytest.mark.parametrize("identity", ["", "vit", "AB" * 32])
def test_a_broken_identity_sets_no_alias_of_a_backbone(identity: str) -> None:
    registry = MemoryRegistry()
    registry.add(tags("0.75", backbone_identity=identity))
    settle(registry, NAME, 1, lambda: None)
    promote_by_hand(registry, NAME, 1)
    assert registry.aliases == {CHAMPION: "1"}


def test_a_driver_that_lost_its_lease_writes_nothing_more() -> None:
    class LostError(Exception):
        pass

    def lost() -> None:
        raise LostError

    registry = with_champion("0.5")
    number = registry.add(tags("0.75"))
    with pytest.raises(LostError):
        settle(registry, NAME, number, lost)
    assert registry.aliases[CHAMPION] == "1"
    assert REASON_TAG not in registry.versions[number]
