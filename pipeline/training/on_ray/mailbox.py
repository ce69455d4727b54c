"""Messages between workers and their driver while they run, in both directions, delivered in the order of sending."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SECONDS_BETWEEN_QUESTIONS = 1.0
SECONDS_FOR_AN_ANSWER = 0.02
"""How long to wait for an answer right after asking. A later answer is read at the next step."""
STOP = "stop"
Message = tuple[Any, ...]
"""A message; its first value says what it is about."""


class _Box:
    """The actor that holds the messages. It lives and dies with the driver's node."""

    def __init__(self) -> None:
        self._to_driver: list[Message] = []
        self._to_workers: list[Message] = []

    def put(self, message: Message) -> None:
        self._to_driver.append(message)

    def take(self) -> list[Message]:
        messages, self._to_driver = self._to_driver, []
        return messages

    def tell(self, message: Message) -> None:
        self._to_workers.append(message)

    def told(self, since: int) -> list[Message]:
        return self._to_workers[since:]


class Mailbox:
    """The driver's end of the mailbox."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.handle = ray.remote(_Box).options(num_cpus=0, scheduling_strategy=here).remote()
        """The handle to send to the workers."""

    def take(self) -> list[Message]:
        """Returns the messages that have come since the last call."""
        return ray.get(self.handle.take.remote())

    def tell(self, *message: Any) -> None:
        """Sends a message to every worker that looks, now or later."""
        ray.get(self.handle.tell.remote(message))

    def ask_to_stop(self) -> None:
        """Asks the workers to save their state soon, and to end."""
        self.tell(STOP)

    def close(self) -> None:
        ray.kill(self.handle)


class WorkersEnd:
    """A worker's end of the mailbox. Only the first worker of a unit asks."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._question: ray.ObjectRef | None = None
        self._asked, self._num_told = 0.0, 0
        self._stopping = False

    def put(self, *message: Any) -> None:
        """Sends a message; returns once the driver's node has it."""
        ray.get(self._handle.put.remote(message))

    def told(self) -> list[Message]:
        """Returns new messages, if the answer to the last question has arrived."""
        if self._question is None and time.monotonic() - self._asked >= SECONDS_BETWEEN_QUESTIONS:
            self._question, self._asked = self._handle.told.remote(self._num_told), time.monotonic()
        if self._question is None or not ray.wait([self._question], timeout=SECONDS_FOR_AN_ANSWER)[0]:
            return []
        question, self._question = self._question, None
        messages: list[Message] = ray.get(question)
        self._num_told += len(messages)
        return messages

    def is_stopping(self) -> bool:
        """Whether the workers were asked to stop, as far as this worker has heard."""
        self._stopping = self._stopping or (STOP,) in self.told()
        return self._stopping
