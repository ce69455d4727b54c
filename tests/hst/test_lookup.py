"""Registries of things by name."""

from collections import OrderedDict

import pytest

from hst.heads import HEADS
from hst.lookup import load, look_up, module_of
from hst.methods import METHODS

REGISTRY = {"ordered": "collections:OrderedDict"}


def test_an_entry_stands_for_what_its_module_defines() -> None:
    assert look_up(REGISTRY, "ordered", "dict") is load("collections:OrderedDict") is OrderedDict
    assert module_of(REGISTRY, "ordered") == "collections"


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="dict 'plain': expected one of ordered"):
        look_up(REGISTRY, "plain", "dict")


@pytest.mark.parametrize("registry", [HEADS, METHODS], ids=["heads", "methods"])
def test_every_entry_is_there(registry: dict[str, str]) -> None:
    for name in registry:
        assert hasattr(look_up(registry, name, "entry"), "build")
