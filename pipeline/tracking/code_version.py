"""Identifies the running code: a version for people, and a hash of sources that tells if a finished step is valid."""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from pipeline.tracking.import_closure import ROOT


@cache
def source_sha256(places: tuple[str, ...]) -> str:
    """sha256 over the .py files under each place (a file or a folder relative to the repository), sorted by path."""
    digest = hashlib.sha256()
    for file in sorted(set(_python_files(places))):
        digest.update(f"{file.relative_to(ROOT).as_posix()}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _python_files(places: Iterable[str]) -> Iterable[Path]:
    for place in places:
        path = ROOT / place
        if not path.exists():
            raise FileNotFoundError(f"{path}: a step names a source that does not exist")
        yield from path.rglob("*.py") if path.is_dir() else [path]


@cache
def code_version() -> str:
    """Package version, a hash of all sources, and the git commit if there is one: ``0.1.0+src.1a2b3c.git.4d5e6f``."""
    try:
        version = importlib.metadata.version("hst")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    commit = _git_commit()
    return f"{version}+src.{source_sha256(('hst', 'pipeline'))[:12]}" + (f".git.{commit}" if commit else "")


def _git_commit() -> str | None:
    """Commit of the checkout that holds these sources; a job's working directory has no .git, an image no git."""
    if not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
