"""The one switch to the plain ways: ``HST_PLAIN=1`` in the environment, or `only` for a part of a program.

What is made faster elsewhere by other means than torch's and timm's own operations (kernels, recorded steps, a second
stream, a block that keeps less) has a plain way with the same results. They are compared by means of this.
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
    """Whether the plain ways are to be taken."""
    return _forced or os.environ.get(VARIABLE, "") not in ("", "0")


def environment() -> dict[str, str]:
    """For a process that is to go the same ways."""
    return {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}


@contextlib.contextmanager
def only() -> Iterator[None]:
    """Within, they are, on all threads."""
    global _forced
    before, _forced = _forced, True
    try:
        yield
    finally:
        _forced = before


def kernels_can_run(x: torch.Tensor) -> bool:
    """Whether Triton's kernels work on tensors like this, here and now; a compiler is given plain operations."""
    return x.device.type == "cuda" and not is_on() and not torch.compiler.is_compiling() and _has_kernels(x.device)


@functools.cache
def _has_kernels(device: torch.device) -> bool:
    """bfloat16 needs an Ampere GPU, and Triton a C compiler beside it."""
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
