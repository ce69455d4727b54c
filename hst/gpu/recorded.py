"""Work on a GPU that is recorded once as a CUDA graph and replayed after that: one launch for all of its kernels, where
launching them one by one takes longer than they run.

What is recorded has to be a function of tensors, of which the shapes decide what is done, that waits for nothing; and
what it takes besides (parameters, buffers, a backbone's weights) has to stay where it is in memory.
"""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from hst import plain

Tensors = Sequence[torch.Tensor | None]
Work = Callable[..., Any]

AFTER = 3
"""Times that something is done without, before it is recorded: it may not come again, and what is made once (weights in
another type, compiled kernels) has to be there."""
MOST = 64
"""Recordings that are kept, the latest used."""
MOST_SEEN = 1000
"""Of what has not been recorded yet."""


class Graph(Protocol):
    """A recording of work with certain tensors."""

    def replay(self) -> Any:
        """Does it with what is in those now; what comes out stands until the next time."""


class CudaGraph:
    """A `Graph` on CUDA. To be recorded the work is gone through, but not done.

    Args:
        work: what is to be done.
        inputs: of it, whose memory stays what it is.
        device: where they are.
        pool: memory that graphs share which never run at the same time.
    """

    failed = False
    """Once one has, torch's allocator may not take another in this process."""

    def __init__(self, work: Work, inputs: Tensors, *, device: torch.device, pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # torch leaves the recording's stream in place where that fails. Other threads load data meanwhile, and may do
        # what this one may not.
        stays = torch.cuda.stream(torch.cuda.current_stream(device))
        recording = torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local")
        try:
            with torch.cuda.device(device), stays, recording:
                self._outputs = work(*inputs)
        except BaseException:
            CudaGraph.failed = True
            raise

    def replay(self) -> Any:
        """As of `Graph`."""
        self._graph.replay()
        return self._outputs


class _Recording(NamedTuple):
    inputs: Tensors
    graph: Graph


class Recorder:
    """Does work, and records what comes again and again with the same shapes.

    Args:
        device: of the tensors. On a CPU nothing is recorded.
        record: makes a recording; by default a `CudaGraph` where ``device`` is one of CUDA.
    """

    def __init__(self, device: torch.device, *, record: Callable[[Work, Tensors], Graph] | None = None) -> None:
        if record is None and device.type == "cuda" and not CudaGraph.failed:
            record = functools.partial(CudaGraph, device=device, pool=torch.cuda.graph_pool_handle())
        self._record = record
        self._inputs: dict[tuple[Any, ...], torch.Tensor] = {}
        self._seen: dict[tuple[Any, ...], int] = {}
        self._recordings: OrderedDict[tuple[Any, ...], _Recording] = OrderedDict()

    def run(self, owners: Sequence[Hashable], kind: Hashable, work: Work, inputs: Tensors) -> Any:
        """``work(*inputs)``; what comes out stands until the next call.

        Args:
            owners: objects with a part in it, `forget` knows them.
            kind: with them and the inputs' shapes and types, all that decides what is done.
            work: what is to be done.
            inputs: of it.
        """
        if self._record is None or plain.is_on():
            return work(*inputs)
        shapes = tuple(None if x is None else (x.shape, x.dtype) for x in inputs)
        key = (tuple(owners), kind, shapes)
        if key not in self._recordings and not self._recorded(key, work, inputs):
            return self._unrecorded(work, inputs)
        self._recordings.move_to_end(key)
        recording = self._recordings[key]
        for own, x in zip(recording.inputs, inputs, strict=True):
            if own is not None and x is not None:
                own.copy_(x)
        return recording.graph.replay()

    def forget(self, owner: Hashable) -> None:
        """What it had a part in is not done again; recordings keep memory."""
        self._seen = {key: times for key, times in self._seen.items() if owner not in key[0]}
        for key in [key for key in self._recordings if owner in key[0]]:
            del self._recordings[key]
        if not self._recordings:
            self._inputs.clear()

    def _recorded(self, key: tuple[Any, ...], work: Work, inputs: Tensors) -> bool:
        """Whether it is, now."""
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._seen[key] <= AFTER:
            return False
        del self._seen[key]
        own = [None if x is None else self._place(i, x) for i, x in enumerate(inputs)]
        while len(self._recordings) >= MOST:
            self._recordings.popitem(last=False)
        assert self._record is not None
        try:
            self._recordings[key] = _Recording(own, self._record(work, own))
        except RuntimeError as error:
            self._record = None
            self._drop()
            warnings.warn(f"a CUDA graph could not be recorded; going on without any: {error}", stacklevel=3)
            return False
        return True

    def _place(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """Of input i in all recordings of such, as one of them runs at a time."""
        key = (i, x.shape, x.dtype)
        if key not in self._inputs:
            self._inputs[key] = x.clone()
        return self._inputs[key]

    def _unrecorded(self, work: Work, inputs: Tensors) -> Any:
        """Where memory runs out it is done once more without recordings, batch statistics perhaps counted twice."""
        try:
            return work(*inputs)
        except torch.OutOfMemoryError:
            if not self._recordings:
                raise
        self._drop()
        torch.cuda.empty_cache()
        return work(*inputs)

    def _drop(self) -> None:
        self._recordings.clear()
        self._inputs.clear()
