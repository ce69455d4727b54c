"""Gives the aliases to the versions that should hold them, however many writers register at once.

MLflow sets an alias without looking at what it was, so a writer that was paused between reading and setting may undo a
better one. Settling therefore converges: after every change a writer reads everything again, and goes on until what it
reads is what the rule says. The last one to change an alias also sees all others, so the alias ends where it should.

The rule (`pipeline.registry.champion.best`) is between the holder and the versions that came after it. A version whose
reason is written has been judged. It is not judged again, so what people promote by hand stays until a better version
is registered. Only versions at or after the first that has no reason are judged. An alias that points to one of these
may be a paused writer's, so it does not count as the holder. `promote_by_hand` records its choice, which stands even
if others were registering at that time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.registry.champion import (
    CHAMPION,
    Numbered,
    Tags,
    aliases_of,
    best,
    decide,
    differences,
    is_fit,
    is_ours,
)
from pipeline.tracking.mlflow_client import TrackingError

REASON_TAG = "champion_reason"
_BY_HAND_TAG = "hst.by_hand."
_MOST_ROUNDS = 100


@dataclass(frozen=True)
class _Seen:
    """An alias and the versions that may hold it, as they were read."""

    alias_of: int | None
    """Number of the version that the alias points to."""
    versions: dict[int, Tags]
    """Tags of all versions, ours or not."""
    fitting: frozenset[int]
    """Numbers of our versions that may hold the alias at all."""
    by_hand: tuple[int, int] | None
    """The version that was last promoted by hand, and the last version that there was then."""

    @property
    def unsettled(self) -> list[int]:
        """The versions that have no reason. Of all before the first of them, the alias says which is the best."""
        return [number for number in self.fitting if REASON_TAG not in self.versions[number]]

    def should_hold(self, first: int, besides: int | None = None) -> int | None:
        """The number of the version that should hold the alias.

        Args:
            first: the first version that is to be judged.
            besides: a version that is to be judged as if it did not exist.
        """
        chosen, last = self.by_hand or (None, 0)
        judged = sorted(n for n in self.fitting - {besides} if n >= first and n > last)
        holder = self.alias_of
        if holder in self.fitting and holder >= first and last >= first:
            holder = chosen
        elif holder in self.fitting and holder >= first and is_fit(self.versions[holder]):
            # Perhaps a paused writer's: it says what is compared, and not which is the best.
            judged = [n for n in judged if not differences(self.versions[n], self.versions[holder])]
            holder = None
        return best(self.numbered(holder), [(n, self.versions[n]) for n in judged])

    def numbered(self, number: int | None) -> Numbered | None:
        """A version's number with its tags; without tags if it was deleted."""
        return None if number is None else (number, self.versions.get(number, {}))


def settle(client: Any, name: str, version: int, check: Callable[[], None]) -> None:
    """Gives the aliases to the versions that should hold them; the reason is written last and marks it as settled.

    Args:
        client: MLflow's client.
        name: the registered model.
        version: the version that was just registered.
        check: called before every write; raises where this process must not write any more.
    """
    tags = dict(client.get_model_version(name, str(version)).tags)
    rivals = {alias: _converge(client, name, version, alias, check) for alias in aliases_of(tags)}
    check()
    client.set_model_version_tag(name, str(version), REASON_TAG, decide(tags, rivals[CHAMPION])[1])


def promote_by_hand(client: Any, name: str, version: int) -> None:
    """Moves the champion alias, and that of the version's backbone, to a version that a person chose.

    First it is noted that the choice was made over all versions that there are now.
    """
    versions = _versions(client, name)
    client.set_model_version_tag(name, str(version), REASON_TAG, "promoted by hand")
    for alias in aliases_of(versions[version]):
        client.set_registered_model_tag(name, _BY_HAND_TAG + alias, json.dumps([version, max(versions)]))
        client.set_registered_model_alias(name, alias, str(version))


def _converge(client: Any, name: str, version: int, alias: str, check: Callable[[], None]) -> Numbered | None:
    """Sets the alias until it stays; returns the other version that it is between."""
    seen = _look(client, name, alias)
    first = min([version, *seen.unsettled])
    before = None if seen.alias_of == version else seen.alias_of
    for _ in range(_MOST_ROUNDS):
        target = seen.should_hold(first)
        if target == seen.alias_of:
            if target != version:
                return seen.numbered(target)
            second = seen.numbered(seen.should_hold(first, besides=version))
            return seen.numbered(best(seen.numbered(before), [] if second is None else [second]))
        assert target is not None  # an alias is never taken away
        check()
        client.set_registered_model_alias(name, alias, str(target))
        seen = _look(client, name, alias)
    raise TrackingError(f"{name}: others changed the alias {alias} {_MOST_ROUNDS} times; run the same command again")


def _look(client: Any, name: str, alias: str) -> _Seen:
    versions = _versions(client, name)
    # After the versions: what was settled by then shows in the alias.
    model = client.get_registered_model(name)
    number = model.aliases.get(alias)
    if number is not None and int(number) not in versions:  # it was registered meanwhile
        versions = _versions(client, name)
    text = model.tags.get(_BY_HAND_TAG + alias)
    chosen, last = json.loads(text) if text else (None, 0)
    return _Seen(
        alias_of=None if number is None else int(number),
        versions=versions,
        fitting=frozenset(n for n, tags in versions.items() if is_ours(tags) and alias in aliases_of(tags)),
        by_hand=(chosen, last) if chosen in versions else None,
    )


def _versions(client: Any, name: str) -> dict[int, Tags]:
    found = pages(client.search_model_versions, filter_string=f"name = '{name}'")
    return {int(entry.version): dict(entry.tags) for entry in found}


def pages(search: Any, **arguments: Any) -> list[Any]:
    """Everything that a paged search of MlflowClient finds."""
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token, **arguments)
        found += page
        token = page.token
        if not token:
            return found
