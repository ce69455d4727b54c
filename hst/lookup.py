"""Registries: literal dicts whose values say where something is defined, as ``module:name``.

A registry imports nothing, so that a module which no task uses is never loaded, and so that a new line in it changes
nothing for the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def look_up(registry: Mapping[str, str], name: str, what: str) -> Any:
    """What a registry's entry stands for.

    Args:
        registry: name -> ``module:name``.
        name: a key.
        what: the kind of thing that it names, for the error.

    Raises:
        ValueError: the registry has no such name; the message lists those that it has.
    """
    if name not in registry:
        raise ValueError(f"{what} {name!r}: expected one of {', '.join(registry)}")
    return load(registry[name])


def load(entry: str) -> Any:
    """What ``module:name`` stands for."""
    module, _, attribute = entry.partition(":")
    return getattr(importlib.import_module(module), attribute)


def module_of(registry: Mapping[str, str], name: str) -> str:
    """The module that defines an entry; a finished training depends on its source."""
    return registry[name].partition(":")[0]
