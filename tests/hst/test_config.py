"""HSNConfig: depths, taps, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from hst.config import HSN_B, HSN_L, HSN_PRESETS, HSN_S, HSNConfig


def test_the_presets_have_names_of_their_own() -> None:
    assert HSN_PRESETS == {"HSN_S": HSN_S, "HSN_B": HSN_B, "HSN_L": HSN_L}


@pytest.mark.parametrize(
    ("vit_depth", "depths"),
    [
        (4, (1, 1, 1, 1)),
        (8, (2, 2, 2, 2)),
        (12, (3, 3, 3, 3)),
        (24, (6, 6, 6, 6)),
        (14, (3, 4, 3, 4)),
        (5, (1, 1, 1, 2)),
    ],
)
def test_open_depths_split_the_vit_evenly(vit_depth: int, depths: tuple[int, ...]) -> None:
    resolved = HSNConfig().resolve(vit_depth)
    assert resolved.depths == depths
    assert resolved.resolve(vit_depth) == resolved
    assert [tap for stage in resolved.taps(vit_depth) for tap in stage] == list(range(vit_depth))


@pytest.mark.parametrize(
    ("vit_depth", "depths", "taps"),
    [
        (12, (1, 1, 1, 1), ((2,), (5,), (8,), (11,))),
        (12, (1, 1, 3, 1), ((1,), (3,), (5, 7, 9), (11,))),
        (24, (3, 3, 3, 3), ((1, 3, 5), (7, 9, 11), (13, 15, 17), (19, 21, 23))),
        (5, (1, 1, 1, 1), ((0,), (1,), (2,), (4,))),
        (12, (2, 2, 2, 2), ((0, 2), (3, 5), (6, 8), (9, 11))),
    ],
)
def test_a_side_block_taps_the_last_vit_block_of_its_equal_share(
    vit_depth: int, depths: tuple[int, ...], taps: tuple[tuple[int, ...], ...]
) -> None:
    assert HSNConfig(depths=depths).taps(vit_depth) == taps


def test_more_side_blocks_than_vit_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"depths=\(3, 3, 4, 3\): 13 side blocks for a ViT of 12 blocks"):
        HSNConfig(depths=(3, 3, 4, 3)).resolve(12)


def test_a_vit_of_fewer_blocks_than_stages_is_refused() -> None:
    with pytest.raises(ValueError, match="3 blocks cannot feed 4 stages"):
        HSNConfig().resolve(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (32, 48, 64)}, "widths"),
        ({"widths": (32, 48, 64, 0)}, "widths"),
        ({"widths": "HSN_B"}, "widths"),
        ({"depths": (3, 3, 3, 0)}, "depths"),
        ({"depths": (3, 3, 3, 1.5)}, "depths"),
        ({"num_heads": (2, 4, 8, 11)}, "11 heads do not divide width 72"),
        ({"num_registers": 65}, "num_registers=65: expected an integer from 0 to 64"),
        ({"num_registers": -1}, "num_registers=-1"),
        ({"num_registers": True}, "num_registers=True"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
        ({"share_bridge": 1}, "share_bridge=1"),
        (
            {"num_registers": 0, "use_global_token": False, "fine_grained_injection": False},
            "would see nothing of the ViT",
        ),
    ],
)
def test_values_that_are_not_possible_are_refused_by_field_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HSNConfig(**changes)


@pytest.mark.parametrize("name", HSN_PRESETS)
def test_presets_leave_depths_open_and_travel_as_json(name: str) -> None:
    preset = HSN_PRESETS[name]
    assert preset.depths is None
    assert HSNConfig.from_dict(preset.to_dict()) == preset
    resolved = preset.resolve(12)
    assert HSNConfig.from_dict(resolved.to_dict()) == resolved
    assert all(not isinstance(value, tuple) for value in resolved.to_dict().values())


def test_an_unknown_field_of_a_stored_config_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown HSNConfig fields \['metaG_num'\]"):
        HSNConfig.from_dict({"metaG_num": 1})
