"""A registry in memory whose callers take turns: a schedule says who makes the next call, so any pause is tried."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any


class Pages(list[Any]):
    token = None


class MemoryRegistry:
    """The calls of MlflowClient that settling makes, on one registered model. Every call is one step."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}
        self.model_tags: dict[str, str] = {}
        self.versions: dict[int, dict[str, str]] = {}

    def add(self, tags: dict[str, str]) -> int:
        number = len(self.versions) + 1
        self.versions[number] = dict(tags)
        return number

    def get_registered_model(self, name: str) -> Any:
        return SimpleNamespace(aliases=dict(self.aliases), tags=dict(self.model_tags))

    def search_model_versions(self, *, filter_string: str, page_token: str | None) -> Pages:
        return Pages(SimpleNamespace(version=n, tags=dict(tags)) for n, tags in self.versions.items())

    def get_model_version(self, name: str, version: str) -> Any:
        return SimpleNamespace(version=version, tags=dict(self.versions[int(version)]))

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self.aliases[alias] = version

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self.model_tags[key] = value

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self.versions[int(version)][key] = value


class Turns:
    """Runs several writers on one registry. Before each call a writer waits for its turn.

    Args:
        registry: what they write to.
        schedule: numbers that choose among the writers that have not ended; then each goes on to its end, in order.
    """

    def __init__(self, registry: MemoryRegistry, schedule: Sequence[int]) -> None:
        self._registry, self._schedule = registry, schedule

    def run(self, writers: Sequence[Callable[[Any], None]]) -> None:
        """Runs all writers to their ends; raises the first error of one."""
        turns = [_Turn(self._registry, writer) for writer in writers]
        alive = list(turns)
        try:
            for choice in [*self._schedule, *[0] * 2000]:
                if not alive:
                    break
                turn = alive[choice % len(alive)]
                if turn.go_on():
                    alive.remove(turn)
            assert not alive, "a writer does not end"
        finally:
            for turn in turns:
                turn.give_up()
        for turn in turns:
            if turn.error is not None:
                raise turn.error


class _GivenUp(BaseException):
    pass


class _Turn:
    def __init__(self, registry: MemoryRegistry, writer: Callable[[Any], None]) -> None:
        self._registry, self._writer = registry, writer
        self._mine, self._others = threading.Semaphore(0), threading.Semaphore(0)
        self._ended = self._given_up = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._others.acquire()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._registry, name)

        def wait_and_call(*args: Any, **kwargs: Any) -> Any:
            self._others.release()
            self._mine.acquire()
            if self._given_up:
                raise _GivenUp
            return call(*args, **kwargs)

        return wait_and_call

    def go_on(self) -> bool:
        """Makes the writer's next call; returns whether it has ended."""
        if not self._ended:
            self._mine.release()
            self._others.acquire()
        return self._ended

    def give_up(self) -> None:
        self._given_up = True
        if not self._ended:
            self._mine.release()
        self._thread.join(10)

    def _run(self) -> None:
        try:
            self._writer(self)
        except _GivenUp:
            pass
        except BaseException as error:
            self.error = error
        self._ended = True
        self._others.release()
