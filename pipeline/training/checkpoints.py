"""Checkpoints of a unit in training. The data is written first and the manifest last; only whole ones are read.

A unit's folder holds the checkpoints of all attempts at it, at any depth. Training resumes from the furthest one. A
checkpoint is a folder of files and COMPLETE, a JSON file with the sha256 of all other files. If a kill cut a
checkpoint off, or a file has changed since, the hashes do not match and the next best checkpoint is taken.
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
    """What a finished run returns."""

    history: list[dict[str, Any]]
    """One row per epoch."""
    results: dict[str, Any]
    """Metrics, what they keep for pictures, throughput; see `pipeline.training.task_run.RunState`."""
    tensors: dict[str, torch.Tensor]
    """The task's parameters and buffers."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint in storage."""

    uri: str
    """URI of its folder."""
    progress: tuple[int, int]
    """Number of finished epochs, and of images in the unfinished ones, summed over all runs of the unit."""
    finished: bool
    """Whether all runs have ended; then the checkpoint holds their results."""
    files: dict[str, str]
    """sha256 of each file, by its name."""

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file; raises ValueError if they have changed."""
        data = storage.read_bytes(storage.join(self.uri, name))
        found = hashlib.sha256(data).hexdigest()
        if found != self.files[name]:
            raise ValueError(f"{self.uri}/{name}: its sha256 is {found[:16]}..., it was {self.files[name][:16]}...")
        return data

    def states(self) -> list[dict[str, Any]]:
        """The runs' state dicts, on the CPU."""
        return torch.load(io.BytesIO(self.read(_STATE)), map_location="cpu", weights_only=True)

    def results(self) -> list[RunResult]:
        """The results of a finished unit, one a run."""
        results = json.loads(self.read(_RESULT))
        return [RunResult(**r, tensors=load_tensors(self.read(_tensors(i)))) for i, r in enumerate(results)]


def save(folder: Path, states: Sequence[RunState]) -> None:
    """Writes all run states into a local folder. Once all runs have finished, also their results and small tensors."""
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
    """Saves a checkpoint into its own folder below the unit's, and removes the earlier ones of the same attempt.

    Checkpoints of other attempts stay: a newer driver may have written them.

    Args:
        folder_uri: The unit's folder, local or s3://.
        attempt: Name of the attempt that writes.
        number: Number of this checkpoint within the attempt.
        states: The states of all runs of the unit.
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
    """The furthest whole checkpoint below a folder; None if there is none.

    Args:
        folder_uri: The folder of one unit, local or s3://.
        say: Called with a line about each checkpoint that is not whole.

    Raises:
        StorageError: Storage does not answer, so nobody knows which checkpoints are whole.
    """
    names = [name for name in storage.list_prefix(folder_uri) if posixpath.basename(name) == COMPLETE]
    found = []
    for name in names:
        uri = storage.join(folder_uri, posixpath.dirname(name))
        try:
            checkpoint = _opened(uri)
        except storage.StorageError:
            raise  # the checkpoint may be whole
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            say(f"a checkpoint is not whole, and is skipped: {uri}: {error}")
            continue
        found.append(checkpoint)
    for checkpoint in sorted(found, key=lambda one: (one.progress, one.uri), reverse=True):
        try:
            for name in checkpoint.files:
                checkpoint.read(name)
        except storage.StorageError:
            raise
        except (ValueError, FileNotFoundError) as error:
            say(f"a checkpoint is not whole, and is skipped: {error}")
            continue
        return checkpoint
    return None


def progress(folder_uri: str) -> float | None:
    """Finished epochs a run in the furthest checkpoint below a folder; None if there is no checkpoint.

    This reads only the COMPLETE files; it does not check whether the checkpoints are whole.
    """
    done = []
    for name in storage.list_prefix(folder_uri):
        if posixpath.basename(name) == COMPLETE:
            try:
                complete = json.loads(storage.read_bytes(storage.join(folder_uri, name)))
            except (FileNotFoundError, json.JSONDecodeError):
                continue  # just deleted or half written: the unit may be in training
            done.append(complete["progress"][0] / complete["runs"])
    return max(done, default=None)


def discard(folder_uri: str) -> None:
    """Removes a unit's folder, once its results are kept elsewhere."""
    for name in storage.list_prefix(folder_uri):
        storage.delete(storage.join(folder_uri, name))


def _opened(uri: str) -> Checkpoint:
    complete = json.loads(storage.read_bytes(storage.join(uri, COMPLETE)))
    epochs, images = complete["progress"]
    return Checkpoint(uri=uri, progress=(epochs, images), finished=complete["finished"], files=complete["files"])


def _tensors(run: int) -> str:
    return f"tensors-{run}.safetensors"
