"""`--set field=value`: texts that change a recipe and its side network."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from hst.config import HSN_PRESETS, HSNConfig
from pipeline.tasks.near_names import near_names
from pipeline.tasks.recipe import Recipe, RecipeError


def apply_settings(
    recipe: Recipe, settings: Sequence[str], hsn_fields: Mapping[str, Any] | None = None
) -> tuple[Recipe, HSNConfig, list[str]]:
    """Applies `field=value` texts to a recipe and to the side network's preset.

    Args:
        recipe: What the task's catalogue entry says.
        settings: Each names a field of Recipe or of HSNConfig once. Tuples are written 32,48,64,72; also none, true,
            false.
        hsn_fields: What the task itself changes in its recipe's preset; the settings go on top.

    Returns:
        The recipe and the side network with the settings applied, and every fault found. Where there are faults the
        first two are without the settings and not to be used.
    """
    faults: list[str] = []
    for_recipe: dict[str, Any] = {}
    for_hsn: dict[str, Any] = {}
    recipe_types = typing.get_type_hints(Recipe)
    hsn_types = {field.name: typing.get_type_hints(HSNConfig)[field.name] for field in dataclasses.fields(HSNConfig)}
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals or not name:
            faults.append(f"--set {setting!r}: expected field=value, as in epochs=40")
            continue
        if name in for_recipe or name in for_hsn:
            faults.append(f"--set {setting!r}: {name} is set twice; keep one")
            continue
        if name not in recipe_types and name not in hsn_types:
            faults.append(_unknown_field(setting, name, [*recipe_types, *hsn_types]))
            continue
        values, kind = (for_recipe, recipe_types[name]) if name in recipe_types else (for_hsn, hsn_types[name])
        try:
            values[name] = _parse(text, kind)
        except ValueError:
            faults.append(f"--set {setting!r}: expected {describe_kind(kind)} for {name}; one --set a field")
    try:
        changed = dataclasses.replace(recipe, **for_recipe)
    except RecipeError as error:
        faults += [f"--set: {fault}" for fault in error.faults]
        changed = recipe
    hsn = HSN_PRESETS[changed.hsn]
    try:
        hsn = dataclasses.replace(hsn, **{**(hsn_fields or {}), **for_hsn})
    except ValueError as error:
        faults.append(f"--set {_as_settings(for_hsn or {'hsn': changed.hsn})}: {error}")
    return changed, hsn, faults


def _unknown_field(setting: str, name: str, names: list[str]) -> str:
    hint = near_names(name, names) or f"the fields are {', '.join(names)}"
    return f"--set {setting!r}: no recipe or HSN field is called {name!r}; {hint}"


def _as_settings(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _parse(text: str, kind: Any) -> Any:
    """Reads a text as the annotated type of a field; ValueError where it is not one."""
    options = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if text.lower() == "none" and types.NoneType in options:
            return None
        return _parse(text, next(option for option in options if option is not types.NoneType))
    if origin is tuple:
        return tuple(_parse(part.strip(), options[0]) for part in text.strip("()[] ").rstrip(",").split(","))
    if kind is bool:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _refuse(text)
    if kind in (int, float, str):
        return kind(text)
    raise TypeError(f"a field of type {kind!r} cannot be set from text")


def _refuse(text: str) -> typing.NoReturn:
    raise ValueError(text)


def describe_kind(kind: Any, *, several: str = "{}, several separated by commas", none: str = "none") -> str:
    """A field's annotated type for people; `several` and `none` are how the place it is written in has them."""
    options = typing.get_args(kind)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(describe_kind(option, several=several, none=none) for option in options)
    if typing.get_origin(kind) is tuple:
        return several.format(describe_kind(options[0]))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", types.NoneType: none}
    return names[kind]
