"""Finds the faults of a search before anything starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hst.backbone import Backbone
from hst.config import HSNConfig
from pipeline.search.plan import SearchOptions, SearchPlan
from pipeline.search.sampler import ALGORITHMS
from pipeline.search.space import HSN_FIELDS, Choice, Range, check_space, is_searched, read_space, space_of
from pipeline.tasks.recipe import Recipe

Given = Mapping[str, Choice | Range | None]


def read_search(
    options: SearchOptions | None, seeds: int, *, trials_option: str = "--search"
) -> tuple[Given, list[str]]:
    """The fields of the search space's file, and the faults of that file and of the command line's numbers."""
    faults = [] if seeds >= 1 else [f"--seeds {seeds}: expected at least 1"]
    if options is None:
        return {}, faults
    if options.trials < 1:
        faults.append(f"{trials_option} {options.trials}: expected at least 1 trial")
    for name, number in (
        ("--search-epochs", options.epochs),
        ("--search-seconds", options.seconds),
        ("--trials-at-once", options.at_once),
    ):
        if number is not None and number <= 0:
            faults.append(f"{name} {number:g}: expected a number above 0")
    if options.algorithm not in ALGORITHMS:
        faults.append(f"--search-algorithm {options.algorithm}: expected one of {', '.join(ALGORITHMS)}")
    given: Given = {}
    if options.space is not None:
        given, found = read_space(options.space)
        faults += found
    return given, faults


def plan_search(
    options: SearchOptions, given: Given, fixed: Collection[str], recipe: Recipe, hsn: HSNConfig, backbone: Backbone
) -> tuple[SearchPlan, list[str]]:
    """The search of one task, and its faults.

    Args:
        options: the options of the command line.
        given: the fields that `read_search` returned.
        fixed: fields that `--set` has fixed.
        recipe: the task's recipe.
        hsn: the task's side network, resolved.
        backbone: the frozen ViT.
    """
    space = space_of(given, fixed, recipe.method, hsn, backbone.depth)
    faults = [
        f"search space: {options.space}: {name} is fixed by --set; say it in one of the two places"
        for name in sorted(fixed & given.keys())
    ]
    faults += [f"search space: {fault}" for fault in check_space(space, recipe, hsn, backbone.depth)]
    if recipe.method != "hst":
        faults += [
            f"search space: {name}: a field of HST's side network, and the task's method is {recipe.method}"
            for name in sorted(HSN_FIELDS & space.keys())
        ]
    heads = space.get("head_input")
    if isinstance(heads, Choice) and "side+cls" in heads.values and not backbone.has_class_token:
        faults.append(f"search space: head_input=side+cls: backbone {backbone.name!r} has no class token")
    if not any(is_searched(part) for part in space.values()):
        faults.append("search space: every field is fixed; nothing is left to search")
    if options.common_registers and not isinstance(space.get("num_registers"), Choice):
        faults.append("--common-registers: num_registers is not among what is searched, as a list of values")
    if options.epochs is not None and options.epochs > recipe.epochs:
        faults.append(f"--search-epochs {options.epochs}: more than the recipe's epochs={recipe.epochs}")
    return SearchPlan(options=options, space=space), faults
