"""How the images of a ViT's pretraining were normalised and resized. A task on the ViT does the same by default."""

from __future__ import annotations

from dataclasses import dataclass

import timm

from hst.vit.weights import PROJECT_VITS


@dataclass(frozen=True)
class PretrainedPixels:
    """The pixels that a ViT knows (timm's ``pretrained_cfg``)."""

    mean: tuple[float, float, float]
    """Mean of each RGB channel, for values in [0, 1]."""
    std: tuple[float, float, float]
    """Standard deviation of each RGB channel, for values in [0, 1]."""
    interpolation: str
    """Filter of the resize: a key of `hst.config.INTERPOLATIONS`."""


def pretrained_pixels(name: str) -> PretrainedPixels:
    """The pixels of the weights that a timm name with its tag stands for; a bare name has timm's default tag.

    Mean, std and filter differ between tags of one architecture (ImageNet's, CLIP's, 0.5, ...), so weights from a file
    need their tag in the name. timm's ``crop_pct`` is not among them: a task's images are resized whole, as in the
    released code, unless its recipe sets ``eval_crop``.

    Raises:
        ValueError: timm knows no such model or tag.
    """
    if name in PROJECT_VITS:
        return PretrainedPixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag; of an unknown model there is None
        config = None
    if config is None:
        raise ValueError(f"backbone {name!r}: timm {timm.__version__} knows no such model or tag")
    return PretrainedPixels(tuple(config.mean), tuple(config.std), config.interpolation)
