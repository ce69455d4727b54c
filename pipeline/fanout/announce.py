"""What a fan-out says before it begins: where it runs, where results go, and how images are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from hst.vit.pretrained_pixels import pretrained_pixels
from hst.vit.weights import PROJECT_VITS
from pipeline.console.secrets import shown
from pipeline.fanout.options import FanoutOptions
from pipeline.storage.files import excludes_others
from pipeline.workflow.job import TaskJob


def say_places(options: FanoutOptions, say: Callable[[str], None]) -> None:
    """Says where the fan-out runs and where its results go."""
    address = os.environ.get("RAY_ADDRESS")
    say(f"Ray: {f'joined {shown(address)}' if address else 'started here, for this job alone'}")
    say(f"storage {options.storage}, tracking {shown(options.tracking_uri)}")
    if not excludes_others(options.storage):
        say("single driver only: this store ignores If-None-Match, by which one of two drivers would be kept out")


def say_pixels(options: FanoutOptions, jobs: Sequence[TaskJob], backbone: str, say: Callable[[str], None]) -> None:
    """Says how images are normalised where that follows from the backbone's name."""
    known = pretrained_pixels(backbone)
    if all((job.recipe.mean, job.recipe.std) != (known.mean, known.std) for job in jobs):
        return
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (known.mean, known.std))
    say(f"images: mean {mean}, std {std}, {known.interpolation}, as in the pretraining of {backbone}")
    if "." not in backbone and backbone not in PROJECT_VITS and options.backbone_weights not in (None, "random"):
        say(
            f"images: {backbone} has no tag, so these are timm's for its default weights; if the file's are others, "
            f"name them (--backbone {backbone}.TAG) or set mean and std"
        )
