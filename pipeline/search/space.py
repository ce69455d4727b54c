"""What a search may change: for some fields of a recipe and a side network, the values to choose from.

A point is one value for each field, in plain JSON values (lists for tuples).
"""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hst.config import HSNConfig
from pipeline.tasks.recipe import FIELD_GROUPS, Recipe
from pipeline.tasks.toml_table import as_kind, came, did_you_mean, read_table

Point = dict[str, Any]

SCALES = (0.5, 0.75, 1, 1.5, 2)
"""Factors of the task's own widths. Half of HSN-B's widths are HSN-S's."""
REGISTERS = (0, 1, 2, 4, 8, 16, 32)
LEARNING_RATES = (5e-4, 1e-2)
"""Smallest and largest value in the released scripts (arXiv 2310.05393), as in WEIGHT_DECAYS and DROP_PATHS."""
WEIGHT_DECAYS = (5e-5, 5e-2)
DROP_PATHS = (0.0, 0.1, 0.2)
AS_IN_RECIPE = "recipe"
"""In a file: the field is not searched and keeps the recipe's value."""

NOT_SEARCHED = {
    # Trials of one search are compared at equal values of these.
    **dict.fromkeys(
        (*FIELD_GROUPS["pixels"], *FIELD_GROUPS["computing"], "epochs", "batch_statistics"), "set it for all by --set"
    ),
    "method": "a search is of one method; set it for all by --set",
    "hsn": "name the widths: widths = [[16, 24, 32, 36], [32, 48, 64, 72]]",
}
_RECIPE = typing.get_type_hints(Recipe)
_HSN = typing.get_type_hints(HSNConfig)
HSN_FIELDS = frozenset(_HSN)
"""Fields of HST's side network."""
_KINDS = {
    name: kind
    for name, kind in (_RECIPE | {field.name: _HSN[field.name] for field in dataclasses.fields(HSNConfig)}).items()
    if name not in NOT_SEARCHED
}
_MAX_COMBINATIONS = 2000


@dataclass(frozen=True)
class Choice:
    """One of a few values; a single one fixes the field."""

    values: tuple[Any, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"choices": list(self.values)}


@dataclass(frozen=True, kw_only=True)
class Range:
    """Any number between two, uniformly, or uniformly in its logarithm."""

    low: float
    high: float
    log: bool
    whole: bool = False
    """Take whole numbers only."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


Space = dict[str, Choice | Range]


def is_searched(part: Choice | Range) -> bool:
    """Whether there is more than one value."""
    return isinstance(part, Range) or len(part.values) > 1


def default_space(hsn: HSNConfig, vit_depth: int) -> Space:
    """Scaled widths, depths, registers, and the paper's ranges of learning rate, weight decay and drop-path.

    Args:
        hsn: the task's own, resolved: the widths that are scaled, and one of the depths.
        vit_depth: blocks of the frozen ViT.
    """
    widths = [[_scaled(w, h, scale) for w, h in zip(hsn.widths, hsn.num_heads, strict=True)] for scale in SCALES]
    thin, late = vit_depth // 6, vit_depth - 3 * (vit_depth // 6)
    depths = [list(hsn.depths or ()), [1, 1, 1, 1], [thin, thin, late, thin]]
    if vit_depth >= 8:
        depths.insert(2, [2, 2, 2, 2])
    return {
        "widths": Choice(_distinct([list(hsn.widths), *widths])),
        "depths": Choice(_distinct([one for one in depths if min(one, default=0) > 0])),
        "num_registers": Choice(REGISTERS),
        "learning_rate": Range(low=LEARNING_RATES[0], high=LEARNING_RATES[1], log=True),
        "weight_decay": Range(low=WEIGHT_DECAYS[0], high=WEIGHT_DECAYS[1], log=True),
        "drop_path": Choice(DROP_PATHS),
    }


def read_space(file: str) -> tuple[dict[str, Choice | Range | None], list[str]]:
    """The fields of a TOML file, and its faults by line.

        widths = [[16, 24, 32, 36], [32, 48, 64, 72]]       a list: one of its values
        learning_rate = { low = 5e-4, high = 2e-2, log = true }
        drop_path = 0.1                                     a value: the only one
        weight_decay = "recipe"                             not searched, which gives None here

    Fields that it does not name are searched as in `default_space`.
    """
    faults: list[str] = []
    found: dict[str, Choice | Range | None] = {}
    table = read_table(file, faults, expected="a field of the search space a line")
    for name, value in (table.values if table else {}).items():
        assert table is not None
        if name in NOT_SEARCHED:
            table.fault(f"cannot be searched; {NOT_SEARCHED[name]}", name)
        elif name not in _KINDS:
            table.fault(f"no such field; {did_you_mean(name, _KINDS)}", name)
        elif value == AS_IN_RECIPE:
            found[name] = None
        else:
            try:
                found[name] = _parameter(name, value)
            except ValueError as error:
                table.fault(str(error), name)
    return found, faults


def space_of(
    given: Mapping[str, Choice | Range | None],
    fixed: typing.Collection[str],
    method: str,
    hsn: HSNConfig,
    vit_depth: int,
) -> Space:
    """The space of one task: the default one, changed by a file, without the fields that `--set` has fixed.

    The side network's fields are in the default space of a task that HST tunes; other methods have no side network.
    """
    default = default_space(hsn, vit_depth)
    own = {name: part for name, part in default.items() if method == "hst" or name not in _HSN}
    merged: dict[str, Choice | Range | None] = {**own, **given}
    return {name: part for name, part in sorted(merged.items()) if part is not None and name not in fixed}


def check_space(space: Space, recipe: Recipe, hsn: HSNConfig, vit_depth: int) -> list[str]:
    """A sentence for each value, and for each combination of the side network's fields, that no run can have."""
    faults = []
    for name, part in space.items():
        for value in _ends(part):
            try:
                apply(recipe, hsn, {name: value})[1].resolve(vit_depth)
            except ValueError as error:
                if name in _RECIPE or not isinstance(part, Choice):
                    faults.append(f"{name}: {error}")
    parts = {name: part for name, part in space.items() if name in _HSN}
    combinations = itertools.product(*(_ends(part) for part in parts.values()))
    for values in itertools.islice(combinations, _MAX_COMBINATIONS):
        try:
            apply(recipe, hsn, dict(zip(parts, values, strict=True)))[1].resolve(vit_depth)
        except ValueError as error:
            faults.append(str(error))
    return list(dict.fromkeys(faults))


def apply(recipe: Recipe, hsn: HSNConfig, point: Mapping[str, Any]) -> tuple[Recipe, HSNConfig]:
    """The recipe and the side network at a point. Raises ValueError for an impossible point."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in point.items()}
    in_recipe: dict[str, Any] = {k: v for k, v in values.items() if k in _RECIPE}
    in_hsn: dict[str, Any] = {k: v for k, v in values.items() if k not in _RECIPE}
    return dataclasses.replace(recipe, **in_recipe), dataclasses.replace(hsn, **in_hsn)


def point_of(recipe: Recipe, hsn: HSNConfig, names: typing.Iterable[str]) -> Point:
    """The present values of a recipe and a side network."""
    values = {**dataclasses.asdict(recipe), **hsn.to_dict()}
    return {name: list(values[name]) if isinstance(values[name], tuple) else values[name] for name in names}


def as_settings(point: Mapping[str, Any]) -> list[str]:
    """``field=value``, as `--set` takes them."""
    return [
        f"{name}={value!r}" if isinstance(value, float) else f"{name}={label(value)}" for name, value in point.items()
    ]


def label(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _parameter(name: str, value: Any) -> Choice | Range:
    kind = _KINDS[name]
    if isinstance(value, dict):
        return _range(name, value)
    several = isinstance(value, list) and (not value or not _fits(value, kind))
    values = value if several else [value]
    if not values:
        raise ValueError("an empty list; expected the values to choose from")
    for one in values:
        if not _fits(one, kind):
            raise ValueError(f"{came(one)}; expected values as `--set {name}=` takes them, tuples as lists")
    plain = [as_kind(one, kind) for one in values]
    return Choice(_distinct([list(one) if isinstance(one, tuple) else one for one in plain]))


def _range(name: str, value: dict[str, Any]) -> Range:
    expected = "expected { low = 1e-4, high = 1e-2 } and, if wanted, log = true"
    low, high, log = value.get("low"), value.get("high"), value.get("log", False)
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    if set(value) - {"low", "high", "log"} or not numbers or not isinstance(log, bool):
        raise ValueError(f"{came(value)}; {expected}")
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    if not low < high or (log and low <= 0):
        raise ValueError(f"low = {low}, high = {high}: expected low below high{', above 0' if log else ''}")
    options = {_KINDS[name], *typing.get_args(_KINDS[name])}
    whole = int in options
    if not (whole or float in options):
        raise ValueError("is no number; expected a list of values to choose from")
    if whole and not (isinstance(low, int) and isinstance(high, int)):
        raise ValueError(f"low = {low}, high = {high}: expected whole numbers")
    return Range(low=low, high=high, log=log, whole=whole)


def _fits(value: Any, kind: Any) -> bool:
    try:
        as_kind(value, kind)
    except ValueError:
        return False
    return True


def _ends(part: Choice | Range) -> tuple[Any, ...]:
    return part.values if isinstance(part, Choice) else (part.low, part.high)


def _scaled(width: int, heads: int, scale: float) -> int:
    """The multiple of the number of heads that is nearest to the scaled width."""
    return max(1, int(width * scale / heads + 0.5)) * heads


def _distinct(values: list[Any]) -> tuple[Any, ...]:
    return tuple(value for i, value in enumerate(values) if value not in values[:i])
