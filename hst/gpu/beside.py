"""The side network beside the ViT: on a stream of its own it follows block by block, while the ViT goes on (the paper's
parallel mode, Table 9). For prediction on CUDA; recorded (`hst.gpu.recorded`) it becomes two branches of one graph.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping

import torch

from hst import plain


def is_possible(x: torch.Tensor) -> bool:
    """Whether there are streams where ``x`` is, and nothing is kept for a backward pass."""
    possible = x.device.type == "cuda" and not torch.is_grad_enabled()
    return possible and not plain.is_on() and not torch.compiler.is_compiling()


class Beside:
    """A second stream, that waits for each block's output no longer than until it is there.

    Args:
        device: of both streams.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.cuda.current_stream(device)
        self._second = _second_stream(device, self._first, threading.get_ident())
        self._begun = self._first.record_event()
        self._ready: dict[int, torch.cuda.Event] = {}

    def mark(self, block: int) -> None:
        """Its output has been computed on the first stream."""
        self._ready[block] = self._first.record_event()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """What is begun within runs on the second stream; the first goes on once all of it has ended."""
        self._second.wait_event(self._begun)
        try:
            with torch.cuda.stream(self._second):
                yield
        finally:
            self._first.wait_stream(self._second)

    def waiting(self, tokens: Mapping[int, torch.Tensor]) -> Mapping[int, torch.Tensor]:
        """The blocks' outputs, each of which the second stream waits for when it is asked for."""
        return _Waiting(tokens, self._ready, self._second)


@functools.cache
def _second_stream(device: torch.device, first: torch.cuda.Stream, thread: int) -> torch.cuda.Stream:
    """Always the same for one, since memory is used again on the stream that it was used on; and no other's, that would
    use it while this one's first stream still reads it."""
    return torch.cuda.Stream(device)


class _Waiting(Mapping[int, torch.Tensor]):
    def __init__(
        self, tokens: Mapping[int, torch.Tensor], ready: Mapping[int, torch.cuda.Event], stream: torch.cuda.Stream
    ) -> None:
        self._tokens, self._ready, self._stream = tokens, ready, stream

    def __getitem__(self, block: int) -> torch.Tensor:
        self._stream.wait_event(self._ready[block])
        return self._tokens[block]

    def __iter__(self) -> Iterator[int]:
        return iter(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)
