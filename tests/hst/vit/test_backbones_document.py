"""docs/backbones.md says of each family of ViTs whether it can be used, and with which mean and std."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hst.backbone import check_supported
from hst.vit.pretrained_pixels import pretrained_pixels

TEXT = (Path(__file__).resolve().parents[3] / "docs/backbones.md").read_text(encoding="utf-8")
SUPPORTED = re.findall(r"^\| [^|]+ \| `(\S+)` \| ([\d., ]+) \| ([\d., ]+) \|$", TEXT, re.MULTILINE)
REFUSED = [
    name
    for names in re.findall(r"^\| [^|]+ \| (`[^|]+`) \| [^|\d]+ \|$", TEXT, re.MULTILINE)
    for name in re.findall(r"`(\S+)`", names)
]


def test_both_tables_are_found() -> None:
    assert len(SUPPORTED) == 17
    assert len(REFUSED) == 14


@pytest.mark.parametrize(("name", "mean", "std"), SUPPORTED)
def test_a_family_that_is_listed_can_be_used_with_this_mean_and_std(name: str, mean: str, std: str) -> None:
    check_supported(name)
    pixels = pretrained_pixels(name)
    shown = [[float(number) for number in numbers.split(", ")] for numbers in (mean, std)]
    assert [[round(number, 3) for number in numbers] for numbers in (pixels.mean, pixels.std)] == shown


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_is_listed_as_refused_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^backbone '{name}': .* not supported"):
        check_supported(name)
