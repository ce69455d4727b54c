"""A task's images are normalised as those of the ViT's pretraining."""

from __future__ import annotations

import pytest
import timm

from hst.config import DEFAULT_BACKBONE, INTERPOLATIONS
from hst.vit.pretrained_pixels import pretrained_pixels
from hst.vit.weights import PROJECT_VITS

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        (DEFAULT_BACKBONE, HALF, HALF),
        ("vit_base_patch16_224.mae", *IMAGENET),
        ("vit_base_patch16_224.dino", *IMAGENET),
        ("vit_base_patch14_dinov2.lvd142m", *IMAGENET),
        ("vit_base_patch16_clip_224.openai", *CLIP),
        ("deit3_base_patch16_224.fb_in22k_ft_in1k", *IMAGENET),
        ("deit_tiny_patch16_224", *IMAGENET),  # a bare name stands for timm's default tag
        *((name, HALF, HALF) for name in PROJECT_VITS),
    ],
)
def test_mean_and_std_are_those_of_the_weights(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    found = pretrained_pixels(name)
    assert (found.mean, found.std, found.interpolation) == (mean, std, "bicubic")


def test_every_filter_of_timms_vits_is_one_that_we_have() -> None:
    names = timm.list_pretrained(["vit_*", "deit*"])
    assert len(names) > 300
    assert {pretrained_pixels(name).interpolation for name in names} <= set(INTERPOLATIONS)


@pytest.mark.parametrize("name", ["no_such_vit", "vit_base_patch16_224.no_such_tag"])
def test_a_name_that_timm_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"backbone {name!r}: timm .* knows no such model or tag"):
        pretrained_pixels(name)
