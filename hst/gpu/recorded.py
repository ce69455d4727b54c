"""Records GPU work once as a CUDA graph and replays it afterwards, with one launch for all its kernels. This pays where
launching the kernels one by one takes longer than running them.

The work must be a function of tensors. Their shapes alone decide what it does, and it never waits for the GPU. Whatever
else it reads (parameters, buffers, a backbone's weights) must stay at its place in memory.
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
"""Number of calls that run unrecorded before a recording is made. Rare work is not worth one, and what the first calls
make (weights in another type, compiled kernels) must exist before it."""
MOST = 64
"""Maximum number of recordings; the least recently used one goes first."""
MOST_SEEN = 1000
"""Maximum number of kinds of unrecorded work whose calls are counted; beyond it all counts start again."""


class Graph(Protocol):
    """A recording of work on fixed tensors."""

    def replay(self) -> Any:
        """Run the work on the tensors' current values. The next replay overwrites the outputs."""


class CudaGraph:
    """A `Graph` on CUDA. Recording calls the work, but runs none of its kernels.

    Args:
        work: the function to record.
        inputs: its arguments, which must stay at their place in memory.
        device: the device of the inputs.
        pool: memory pool, shared by graphs that never run at the same time.
    """

    failed = False
    """True after a recording has failed: torch's allocator may refuse any other recording in this process."""

    def __init__(self, work: Work, inputs: Tensors, *, device: torch.device, pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # `stays`: after a failure torch would leave the recording's stream as the current one.
        # thread_local: other threads load data meanwhile, with calls that a recording forbids in its own thread.
        stays = torch.cuda.stream(torch.cuda.current_stream(device))
        recording = torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local")
        try:
            with torch.cuda.device(device), stays, recording:
                self._outputs = work(*inputs)
        except BaseException:
            CudaGraph.failed = True
            raise

    def replay(self) -> Any:
        """See `Graph.replay`."""
        self._graph.replay()
        return self._outputs


class _Recording(NamedTuple):
    inputs: Tensors
    graph: Graph


class Recorder:
    """Runs work, and records it after `AFTER` calls with the same shapes.

    Args:
        device: the device of the tensors.
        record: makes a recording. The default is a `CudaGraph` on CUDA, and no recording on other devices.
    """

    def __init__(self, device: torch.device, *, record: Callable[[Work, Tensors], Graph] | None = None) -> None:
        if record is None and device.type == "cuda" and not CudaGraph.failed:
            record = functools.partial(CudaGraph, device=device, pool=torch.cuda.graph_pool_handle())
        self._record = record
        self._inputs: dict[tuple[Any, ...], torch.Tensor] = {}
        self._seen: dict[tuple[Any, ...], int] = {}
        self._recordings: OrderedDict[tuple[Any, ...], _Recording] = OrderedDict()

    def run(self, owners: Sequence[Hashable], kind: Hashable, work: Work, inputs: Tensors) -> Any:
        """Return ``work(*inputs)``. The next call may overwrite the outputs.

        Args:
            owners: objects that the work uses. `forget` drops an owner's recordings.
            kind: a name for the work. Owners, kind and the inputs' shapes and types must decide what the work does.
            work: the function to run.
            inputs: its arguments.
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
        """Drop all recordings that use ``owner``, which is no longer needed, to free their memory."""
        self._seen = {key: times for key, times in self._seen.items() if owner not in key[0]}
        for key in [key for key in self._recordings if owner in key[0]]:
            del self._recordings[key]
        if not self._recordings:
            self._inputs.clear()

    def _recorded(self, key: tuple[Any, ...], work: Work, inputs: Tensors) -> bool:
        """Count a call and make a recording if it is due; whether there is a recording now."""
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
        """The tensor that holds input ``i``. Recordings share it, since only one of them runs at a time."""
        key = (i, x.shape, x.dtype)
        if key not in self._inputs:
            self._inputs[key] = x.clone()
        return self._inputs[key]

    def _unrecorded(self, work: Work, inputs: Tensors) -> Any:
        """If memory runs out, drop the recordings and run again; batch statistics may then count the batch twice."""
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
