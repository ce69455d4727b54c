"""The unit that a group of workers trains: a list of run specs, and how a spec becomes a run.

Specs are plain JSON values, so a unit can be fingerprinted, sent to workers and found again after a restart.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from hst.backbone import Backbone
from hst.heads import HEADS
from hst.lookup import module_of
from hst.methods import METHODS
from hst.model import build_task_model
from hst.preprocessing import Preprocessing
from hst.vit.pretrained_pixels import pretrained_pixels
from pipeline.data.annotations import ANNOTATIONS
from pipeline.data.batches.streaming import open_split
from pipeline.kinds import KINDS
from pipeline.kinds.kind import task_kind
from pipeline.tasks.recipe import Recipe
from pipeline.training.precision import model_dtype
from pipeline.training.task_run import TaskRun
from pipeline.training.workers import Workers


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Everything that one training run depends on, except the code."""

    task: str
    """The task's name."""
    protocol: str
    """``selection`` (train, then val) or ``final`` (trainval, then test)."""
    seed: int
    """Seed of every random draw."""
    kind: str
    """What the task predicts: a key of `pipeline.kinds.KINDS`."""
    recipe: dict[str, Any]
    """The `Recipe` as plain values."""
    method: dict[str, Any]
    """How the task is tuned: ``{"name": a key of hst.methods.METHODS, ...}``."""
    head: dict[str, Any]
    """The head that makes its answers: ``{"kind": a key of hst.heads.HEADS, ...}``."""
    train: str
    """URI of the manifest to train on."""
    evaluate: str
    """URI of the manifest to evaluate on."""
    data_sha256: dict[str, str]
    """sha256 of those two manifests, by split."""
    backbone_name: str
    """timm's name of the backbone."""
    backbone_identity: str
    """sha256 of the frozen weights."""
    memory: str = "speed"
    """One of `hst.config.MEMORY_MODES`. It changes only rounding, so it is not part of a fingerprint."""

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        return dataclasses.asdict(self)


def parts_of(kind: str, method: str, head: str, annotation: str) -> tuple[str, ...]:
    """The modules that tasks of this kind, method, head and annotation use, and tasks of others do not."""
    return (
        module_of(KINDS, kind),
        module_of(METHODS, method),
        module_of(HEADS, head),
        module_of(ANNOTATIONS, annotation),
    )


def with_pixels_of(recipe: Recipe, backbone_name: str) -> Recipe:
    """The recipe, with the mean, std and filter of the backbone's pretraining where it leaves them open."""
    known = dataclasses.asdict(pretrained_pixels(backbone_name))
    return dataclasses.replace(recipe, **{k: value for k, value in known.items() if getattr(recipe, k) is None})


def preprocessing_of(recipe: Recipe, backbone_name: str) -> Preprocessing:
    """How a recipe's images are preprocessed for this backbone."""
    recipe = with_pixels_of(recipe, backbone_name)
    return Preprocessing(
        image_size=recipe.image_size,
        mean=recipe.mean,  # type: ignore[arg-type]
        std=recipe.std,  # type: ignore[arg-type]
        interpolation=recipe.interpolation,  # type: ignore[arg-type]
        crop_fraction=recipe.eval_crop,
        decoding=recipe.decoding,
        background=recipe.background,  # type: ignore[arg-type]
    )


def build_run(spec: RunSpec, backbone: Backbone, workers: Workers, *, cache_shards: bool = False) -> TaskRun:
    """Builds a run on ``backbone``, which is on the worker's device. The model's parameters depend on (seed, task).

    With ``cache_shards``, shards on s3:// that are read every epoch are copied once into the node's cache.
    """
    if backbone.identity != spec.backbone_identity:
        raise ValueError(
            f"{spec.task}: backbone {backbone.identity[:12]} was given, {spec.backbone_identity[:12]} is expected"
        )
    recipe = Recipe.from_dict(spec.recipe)
    kind = task_kind(spec.kind)
    model = build_task_model(backbone, spec.method, spec.head, seed=spec.seed, task=spec.task)
    model.memory = spec.memory
    kind.prepare_head(model.head, recipe)
    preprocessing = preprocessing_of(recipe, spec.backbone_name)
    augment_image = kind.augment_image(recipe, preprocessing, seed=spec.seed, task=spec.task)
    if augment_image is None:
        train = open_split(spec.train, preprocessing, cached=cache_shards)
    else:
        train = open_split(
            spec.train, preprocessing, cached=cache_shards, memory_limit_bytes=0
        )  # every epoch has other pixels, so there is nothing to keep
    if spec.protocol == "final":
        # Test is read once: keeping it gains nothing, and it may be large.
        evaluated = open_split(spec.evaluate, preprocessing, memory_limit_bytes=0)
    else:
        evaluated = open_split(spec.evaluate, preprocessing, cached=cache_shards)
    for split in (train, evaluated):
        expected = spec.data_sha256[split.manifest.split]
        if split.manifest.sha256 != expected:
            raise ValueError(
                f"{spec.task}: {split.manifest.uri} has sha256 {split.manifest.sha256[:12]}, expected {expected[:12]}: "
                f"the data was changed after this run began; run the command again"
            )
    return TaskRun(
        task=spec.task,
        seed=spec.seed,
        kind=kind,
        model=model.to(workers.device, model_dtype(recipe)),
        recipe=recipe,
        preprocessing=preprocessing,
        train=train,
        augment_image=augment_image,
        validation=evaluated if spec.protocol == "selection" else None,
        test=evaluated if spec.protocol == "final" else None,
    )
