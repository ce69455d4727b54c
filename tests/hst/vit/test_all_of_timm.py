"""Every ViT of timm either gives its blocks' tokens as in timm, or is refused by name with the part that differs.

An architecture is built at each image size that its tags have, with its first, second and last block and random
weights. So no giant is left out, and the whole file takes some minutes.
"""

from __future__ import annotations

import fnmatch
from typing import Any

import pytest
import timm
import torch
from torch import nn

from hst.backbone import Backbone, check_supported
from hst.randomness import generator
from hst.side.meta_register import BlockNorms
from hst.vit.weights import build_vit

MODULES = [
    "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos", "vision_transformer_sam", "deit",
    "vitamin", "beit", "eva",
]  # fmt: skip
"""The modules of timm that have ViTs named vit_* and deit*, or others made of its VisionTransformer."""
ARCHITECTURES = timm.list_models(module=MODULES)
REFUSED = {
    "aimv2_*": r"blocks of type Block (RmsNorm, ",
    "test_vit4": r"blocks of type Block (RmsNorm, ",
    "vit_*_rpn_*": "blocks of type ResPostBlock ",
    "vit_*_18x2_*": "blocks of type ParallelThingsBlock ",
    "vit_*_xp_*": "blocks of type ParallelScalingBlock ",
    "vit_pwee_*": "blocks of type ParallelScalingBlock ",
    "vit_dpwee_*": "blocks of type DiffParallelScalingBlock ",
    "deit_*_distilled_*": "a VisionTransformerDistilled that makes its tokens by a PatchEmbed ",
    "vitamin_*": "a VisionTransformer that makes its tokens by a HybridEmbed ",
    "vit_base_mci_224": "a VisionTransformer that makes its tokens by a HybridEmbed ",
    **dict.fromkeys(
        timm.list_models(module="vision_transformer_hybrid"),
        "a VisionTransformer that makes its tokens by a HybridEmbed ",
    ),
    **dict.fromkeys(timm.list_models(module="vision_transformer_relpos"), "a VisionTransformerRelPos "),
    **dict.fromkeys(timm.list_models(module="vision_transformer_sam"), "a VisionTransformerSAM "),
    **dict.fromkeys(timm.list_models(["beit_*", "beitv2_*"]), "a Beit "),
    **dict.fromkeys(timm.list_models(module="eva"), "a Eva "),
}
"""Names or patterns of what is refused -> the part that differs, as the message has it."""


def refusal(architecture: str) -> str | None:
    return next((part for pattern, part in REFUSED.items() if fnmatch.fnmatch(architecture, pattern)), None)


def configurations(architecture: str) -> dict[Any, str]:
    """Shapes of the weights -> a name that has them: tags of an architecture may differ in their image size."""
    found: dict[Any, str] = {}
    for name in [architecture, *timm.list_pretrained(f"{architecture}.*")]:
        with torch.device("meta"):
            state = build_vit(name).state_dict()
        found.setdefault(tuple((key, value.shape) for key, value in state.items()), name)
    return found


def random_vit(name: str) -> Any:
    """Three blocks of the ViT with random weights."""
    with torch.device("meta"):
        vit: Any = build_vit(name)
    vit.blocks = nn.Sequential(*{i % len(vit.blocks): vit.blocks[i] for i in (0, 1, -1)}.values())
    vit = vit.to_empty(device="cpu").eval()
    draws = generator(0, "all of timm", name)
    with torch.no_grad():
        for parameter in vit.parameters():
            if parameter.dim() in (2, 4):
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=draws)
            else:
                parameter.normal_(0.5, 0.2, generator=draws)
    return vit


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if refusal(name) is None])
def test_a_supported_vit_gives_the_tokens_of_timm(architecture: str) -> None:
    check_supported(architecture)
    for name in configurations(architecture).values():
        vit = random_vit(name)
        backbone = Backbone(name, vit, "")
        images = torch.randn(1, 3, *vit.patch_embed.img_size, generator=generator(0, "all of timm", "images"))
        with torch.no_grad():
            expected = vit.forward_intermediates(
                images, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
            )
            out = backbone(images, taps={0, 1, 2}, norms=BlockNorms(backbone.block_norms()))
        assert out.grid == vit.patch_embed.grid_size
        for i, theirs in enumerate(expected):
            patches, prefix = theirs if vit.num_prefix_tokens else (theirs, theirs[:, :0])
            torch.testing.assert_close(out.tokens[i], torch.cat([prefix, patches], dim=1), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if refusal(name) is not None])
def test_another_vit_is_refused_by_its_name_in_one_sentence(architecture: str) -> None:
    with pytest.raises(ValueError, match=f"^backbone '{architecture}': ") as error:
        check_supported(architecture)
    part = refusal(architecture)
    assert part is not None
    assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250
