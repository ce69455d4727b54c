"""Checkpoints of a unit in training: written data first, manifest last, and read only if they are whole.

A folder holds checkpoints in any depth, of all attempts at the unit; the one that is furthest is gone on from. Each is
a folder of files and of COMPLETE, a JSON file with the sha256 of every other one: a checkpoint that was cut off by a
kill, or has changed since, does not fit it, and the next best is taken.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file

from hst.checkpoint_header import file_sha256
from pipeline.storage import files as storage
from pipeline.training.task_run import RunState

COMPLETE = "complete.json"
_STATE = "state.pt"
_RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run hands back."""

    history: list[dict[str, Any]]
    """One row an epoch."""
    results: dict[str, Any]
    """Metrics, confusion counts, throughput; see `pipeline.training.task_run.RunState`."""
    tensors: dict[str, torch.Tensor]
    """The task's parameters and buffers."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One that is in storage and whole."""

    uri: str
    """Of its folder."""
    progress: tuple[int, int]
    """Whole epochs, and images of those that are under way, over all runs of the unit."""
    finished: bool
    """Whether all runs have ended: it holds their results."""
    files: dict[str, str]
    """sha256 by name."""

    def read(self, name: str) -> bytes:
        """One file's bytes; ValueError where they have changed."""
        data = storage.read_bytes(storage.join(self.uri, name))
        found = hashlib.sha256(data).hexdigest()
        if found != self.files[name]:
            raise ValueError(f"{self.uri}/{name}: its sha256 is {found[:16]}..., it was {self.files[name][:16]}...")
        return data

    def states(self) -> list[dict[str, Any]]:
        """The runs' state dicts, on the CPU."""
        return torch.load(io.BytesIO(self.read(_STATE)), map_location="cpu", weights_only=True)

    def results(self) -> list[RunResult]:
        """Of a finished unit."""
        results = json.loads(self.read(_RESULT))
        return [RunResult(**r, tensors=load_tensors(self.read(_tensors(i)))) for i, r in enumerate(results)]


def save(folder: Path, states: Sequence[RunState]) -> None:
    """Writes all run states into a local folder, and once all are finished their results and light tensors."""
    (folder / COMPLETE).unlink(missing_ok=True)
    torch.save([state.state_dict() for state in states], folder / _STATE)
    finished = all(state.finished for state in states)
    if finished:
        for i, state in enumerate(states):
            tensors = {k: v.detach().cpu().contiguous() for k, v in state.run.model.state_dict().items()}
            save_file(tensors, folder / _tensors(i))
        results = [{"history": state.history, "results": state.results} for state in states]
        (folder / _RESULT).write_text(json.dumps(results))
    cursors = [state.cursor for state in states]
    complete = {
        "progress": [sum(cursor["epoch"] for cursor in cursors), sum(cursor["position"] for cursor in cursors)],
        "runs": len(states),
        "finished": finished,
        "files": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
    }
    (folder / COMPLETE).write_text(json.dumps(complete))


def keep(folder_uri: str, attempt: str, number: int, states: Sequence[RunState]) -> None:
    """Saves into a folder of its own below a unit's, and removes the same attempt's before it. Others' are left: they
    may be a newer driver's.

    Args:
        folder_uri: of the unit, local or s3://.
        attempt: of those that write there.
        number: of this checkpoint, within the attempt.
        states: of all its runs.
    """
    name = f"{attempt}-{number}"
    with tempfile.TemporaryDirectory() as scratch:
        save(Path(scratch), states)
        files = sorted(Path(scratch).iterdir(), key=lambda path: path.name == COMPLETE)
        for path in files:
            storage.copy(str(path), storage.join(folder_uri, name, path.name))
    for other in storage.list_prefix(folder_uri):
        if other.startswith(f"{attempt}-") and not other.startswith(f"{name}/"):
            storage.delete(storage.join(folder_uri, other))


def find(folder_uri: str, *, say: Callable[[str], None] = lambda line: None) -> Checkpoint | None:
    """The checkpoint below a folder, local or s3://, that is furthest, of those that are whole; None if none is.

    Args:
        folder_uri: Of one unit.
        say: Told of each that is not whole.

    Raises:
        StorageError: storage does not answer, so that nobody knows.
    """
    names = [name for name in storage.list_prefix(folder_uri) if posixpath.basename(name) == COMPLETE]
    found = []
    for name in names:
        uri = storage.join(folder_uri, posixpath.dirname(name))
        try:
            checkpoint = _opened(uri)
        except storage.StorageError:
            raise  # it may be whole
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            say(f"a checkpoint is not whole, and is passed over: {uri}: {error}")
            continue
        found.append(checkpoint)
    for checkpoint in sorted(found, key=lambda one: (one.progress, one.uri), reverse=True):
        try:
            for name in checkpoint.files:
                checkpoint.read(name)
        except storage.StorageError:
            raise
        except (ValueError, FileNotFoundError) as error:
            say(f"a checkpoint is not whole, and is passed over: {error}")
            continue
        return checkpoint
    return None


def progress(folder_uri: str) -> float | None:
    """Epochs that the furthest checkpoint below a folder has behind it, over its runs; None where there is none.

    Only what checkpoints say of themselves is read, not whether they are whole.
    """
    done = []
    for name in storage.list_prefix(folder_uri):
        if posixpath.basename(name) == COMPLETE:
            try:
                complete = json.loads(storage.read_bytes(storage.join(folder_uri, name)))
            except (FileNotFoundError, json.JSONDecodeError):
                continue  # gone, or on its way: the unit may be in training
            done.append(complete["progress"][0] / complete["runs"])
    return max(done, default=None)


def discard(folder_uri: str) -> None:
    """Removes a unit's folder: its results are kept elsewhere."""
    for name in storage.list_prefix(folder_uri):
        storage.delete(storage.join(folder_uri, name))


def _opened(uri: str) -> Checkpoint:
    complete = json.loads(storage.read_bytes(storage.join(uri, COMPLETE)))
    epochs, images = complete["progress"]
    return Checkpoint(uri=uri, progress=(epochs, images), finished=complete["finished"], files=complete["files"])


def _tensors(run: int) -> str:
    return f"tensors-{run}.safetensors"
