"""The paper's number beside ours, for the paper's own set-up alone."""

from __future__ import annotations

from hst.config import DEFAULT_BACKBONE, HSN_PRESETS
from pipeline.tasks.recipe import Recipe
from pipeline.workflow.job import TaskJob
from pipeline.workflow.site import Site

# The paper's name for a side network on a backbone; timm's name says which weights those are.
_METHODS = {
    (DEFAULT_BACKBONE, "HSN_B"): "HST-B",
    (DEFAULT_BACKBONE, "HSN_S"): "HST-S",
    ("vit_base_patch16_224.mae", "HSN_B"): "HST-B (MAE)",
}


def published(job: TaskJob, site: Site) -> float | None:
    """The paper's number for the same side network on the same ViT at the same size; None for any other set-up."""
    method = _METHODS.get((site.backbone.name, job.recipe.hsn))
    same = (
        not site.backbone.is_random
        and job.recipe.method == "hst"
        and job.hsn == HSN_PRESETS[job.recipe.hsn].resolve(site.backbone.depth)
        and job.recipe.head_input == "side"
        and job.recipe.image_size == Recipe().image_size
    )
    return job.task.published.get(method) if same and method else None
