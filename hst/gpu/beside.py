"""Runs the side network on a second CUDA stream: each Side block starts as soon as the ViT block that it reads is done
(the paper's parallel mode, Table 9). For prediction only. In a CUDA graph (`hst.gpu.recorded`) both become branches.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping

import torch

from hst import plain


def is_possible(x: torch.Tensor) -> bool:
    """Whether ``x`` is on CUDA and needs no gradients; never in plain mode or while a compiler traces."""
    possible = x.device.type == "cuda" and not torch.is_grad_enabled()
    return possible and not plain.is_on() and not torch.compiler.is_compiling()


class Beside:
    """A second stream that waits for one ViT block at a time.

    Args:
        device: the device of both streams.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.cuda.current_stream(device)
        self._second = _second_stream(device, self._first, threading.get_ident())
        self._begun = self._first.record_event()
        self._ready: dict[int, torch.cuda.Event] = {}

    def mark(self, block: int) -> None:
        """Note that the first stream has been given all work up to this block's output."""
        self._ready[block] = self._first.record_event()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the body on the second stream. Afterwards the first stream waits for it."""
        self._second.wait_event(self._begun)
        try:
            with torch.cuda.stream(self._second):
                yield
        finally:
            self._first.wait_stream(self._second)

    def waiting(self, tokens: Mapping[int, torch.Tensor]) -> Mapping[int, torch.Tensor]:
        """The same mapping of block outputs, where reading one makes the second stream wait for it."""
        return _Waiting(tokens, self._ready, self._second)


@functools.cache
def _second_stream(device: torch.device, first: torch.cuda.Stream, thread: int) -> torch.cuda.Stream:
    """The second stream that belongs to this first stream and thread.

    It is always the same one, because torch reuses memory only on the stream that it was allocated on. It is never
    shared: another user could overwrite memory that this first stream still reads.
    """
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
