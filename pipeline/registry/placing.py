"""Downloads files from MLflow beside their destination, and moves them there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.console.secrets import error_text
from pipeline.registry.versions import RegistryError
from pipeline.storage import files
from pipeline.storage.errors import StorageError
from pipeline.tracking.mlflow_client import open_client


@dataclass(frozen=True, kw_only=True)
class PlacedFile:
    """A checked file at its destination."""

    uri: str
    """Absolute local path or s3:// address."""
    size_bytes: int
    """Size of the file."""


def address_in(dest_dir: str | Path, name: str) -> str:
    """The full address of a file of that name in a local folder or below an s3:// prefix.

    Raises StorageError for http:// and other addresses, where nothing can be put.
    """
    return files.join(files.absolute(str(dest_dir)), name)


def put_in_place(file: Path, destination: str) -> PlacedFile:
    """Move or upload a file from `downloaded` to its destination, where it appears whole or not at all."""
    size_bytes = file.stat().st_size
    if files.is_remote(destination):
        files.copy(str(file), destination)
    else:
        # MLflow copies a file with the mode that it has in its store; this one has the mode of a new file.
        with open(file.with_name(f"{file.name}.new"), "xb") as new:
            os.chmod(file, stat.S_IMODE(os.fstat(new.fileno()).st_mode))
        try:
            os.replace(file, destination)
        except OSError as fault:
            raise StorageError(f"{destination}: cannot be put in place: {fault.strerror}") from fault
    return PlacedFile(uri=destination, size_bytes=size_bytes)


@contextlib.contextmanager
def downloaded(tracking_uri: str, run_id: str, artifact_path: str, destination: str | None) -> Iterator[Path]:
    """An artifact in a temporary folder, removed when the block ends.

    For a local ``destination`` it is on the same file system, so that it can be moved into place.
    """
    client = open_client(tracking_uri, create=False)
    beside = None if destination is None or files.is_remote(destination) else Path(destination).parent
    try:
        if beside is not None:
            beside.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".hst-pull-", dir=beside)
    except OSError as fault:
        where = beside or tempfile.gettempdir()
        raise StorageError(f"folder {where}: nothing can be written there: {fault.strerror}") from fault
    with temporary as folder:
        from mlflow.exceptions import MlflowException

        try:
            file = Path(client.download_artifacts(run_id, artifact_path, folder))
        except (MlflowException, OSError) as fault:
            reason = error_text(fault).splitlines()[0]
            raise RegistryError(f"artifact {artifact_path} of run {run_id} cannot be fetched: {reason}") from fault
        if not file.is_file() or not file.resolve().is_relative_to(Path(folder).resolve()):
            raise RegistryError(f"artifact {artifact_path} of run {run_id} is not a file")
        with open(file, "rb+") as written:
            os.fsync(written.fileno())
        yield file
