"""The one switch to plain mode: ``HST_PLAIN=1`` in the environment, or `only` for a part of a program.

Some code is faster or smaller than torch's and timm's own operations (kernels, recorded steps, a second stream, a block
that keeps less). In plain mode torch's and timm's operations run in its place, with the same results, so that both can
be compared.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator

import torch

VARIABLE = "HST_PLAIN"
_forced = False


def is_on() -> bool:
    """Whether plain mode is on."""
    return _forced or os.environ.get(VARIABLE, "") not in ("", "0")


def environment() -> dict[str, str]:
    """The environment variables that give a new process the same mode."""
    return {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}


@contextlib.contextmanager
def only() -> Iterator[None]:
    """Plain mode for the body of a ``with`` statement, on all threads."""
    global _forced
    before, _forced = _forced, True
    try:
        yield
    finally:
        _forced = before


def kernels_can_run(x: torch.Tensor) -> bool:
    """Whether Triton's kernels can run now on tensors like ``x``. A compiler gets plain operations."""
    return x.device.type == "cuda" and not is_on() and not torch.compiler.is_compiling() and _has_kernels(x.device)


@functools.cache
def _has_kernels(device: torch.device) -> bool:
    """Whether Triton and an Ampere GPU or later (for bfloat16) are present, and a C compiler, which Triton needs."""
    has_triton = importlib.util.find_spec("triton") is not None
    if not has_triton or torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    import triton

    try:
        assert triton.runtime.driver.active.utils
    except Exception as error:
        warnings.warn(f"Triton's kernels cannot be used here; going on without them: {error}", stacklevel=4)
        return False
    return True
