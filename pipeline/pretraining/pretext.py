"""The questions that the ViT answers about a drawing while it is pretrained, and their losses.

About a shape that is alone in its picture, the class token tells its formula, where its tip points and how far it
reaches in each direction; the mean of the patch tokens tells its formula, too. About every picture, the class token
tells which patches hold the shapes' centres. Each patch token tells whether the patch shows a shape, and that shape's
centre, size, turn and reach. The heads are linear and thrown away afterwards, so the tokens themselves must hold the
answers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hst.randomness import seeded
from hst.vit.weights import build_vit
from pipeline.pretraining.drawings import GRID, NUM_DIRECTIONS, Drawings
from pipeline.pretraining.formulas import NUM_FORMULAS

WEIGHTS = {
    "formula": 0.5,
    "formula_of_patches": 0.5,
    "turn": 2.0,
    "reach": 20.0,
    "centres": 8.0,
    "shown": 1.0,
    "poses": 2.0,
    "reaches": 20.0,
}
"""Weight of each loss in the sum, chosen so that every loss counts."""


class Pretext(nn.Module):
    """A ViT with a class token and one linear head for each question."""

    def __init__(self, backbone: str, seed: int) -> None:
        super().__init__()
        with seeded(seed, "pretraining", "init"):
            self.vit: Any
            self.vit = build_vit(backbone)
            for block in self.vit.blocks:
                block.attn.fused_attn = False  # backward, the plain form is faster on a CPU with so few tokens
            width: int = self.vit.embed_dim
            self.formula = nn.Linear(width, NUM_FORMULAS)
            self.formula_of_patches = nn.Linear(width, NUM_FORMULAS)
            self.turn = nn.Linear(width, 2)
            self.reach = nn.Linear(width, NUM_DIRECTIONS)
            self.centres = nn.Linear(width, GRID * GRID)
            self.patch = nn.Linear(width, 6 + NUM_DIRECTIONS)
            nn.init.constant_(self.centres.bias, -math.log(30))  # about one patch in thirty holds a centre

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (B, 3, 64, 64) -> answers, named like the fields of `Drawings`.

        ``formula_of_patches`` answers ``formula``, too. Formulas, ``centres`` and ``shown`` are logits.
        """
        tokens = self.vit.forward_features(images)
        whole, patches = tokens[:, 0], tokens[:, 1:]
        patch = self.patch(patches)
        return {
            "formula": self.formula(whole),
            "formula_of_patches": self.formula_of_patches(patches.mean(dim=1)),
            "turn": self.turn(whole),
            "reach": self.reach(whole),
            "centres": self.centres(whole),
            "shown": patch[:, :, 0],
            "poses": patch[:, :, 1:6],
            "reaches": patch[:, :, 6:],
        }


def losses(answers: dict[str, torch.Tensor], truth: Drawings) -> dict[str, torch.Tensor]:
    """The loss of each question: a mean over the pictures or patches to which the question applies."""
    answers = {name: answer.float() for name, answer in answers.items()}
    alone = (truth.formula >= 0).float()
    pictures, patches = alone.sum().clamp(min=1), truth.shown.sum().clamp(min=1)
    turned = (answers["turn"] - truth.turn).square().sum(dim=1)
    reached, reached_at = (
        (answers[name] - getattr(truth, name)).square().mean(dim=-1) for name in ("reach", "reaches")
    )
    posed = F.smooth_l1_loss(answers["poses"], truth.poses, beta=0.2, reduction="none").sum(dim=2)
    return {
        "formula": _entropy(answers["formula"], truth.formula) / pictures,
        "formula_of_patches": _entropy(answers["formula_of_patches"], truth.formula) / pictures,
        "turn": (turned * alone).sum() / pictures,
        "reach": (reached * alone).sum() / pictures,
        "centres": F.binary_cross_entropy_with_logits(answers["centres"], truth.centres),
        "shown": F.binary_cross_entropy_with_logits(answers["shown"], truth.shown),
        "poses": (posed * truth.shown).sum() / patches,
        "reaches": (reached_at * truth.shown).sum() / patches,
    }


def _entropy(logits: torch.Tensor, formula: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, formula, ignore_index=-1, reduction="sum")


def total(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weighted sum of `losses`."""
    return torch.stack([WEIGHTS[name] * loss for name, loss in parts.items()]).sum()


@torch.no_grad()
def scores(answers: dict[str, torch.Tensor], truth: Drawings) -> dict[str, float]:
    """How well the questions are answered, in numbers that people can compare.

    Returns:
        ``formula_top1``: share of right formulas; ``turn_degrees``: median error of the tip's direction;
        ``shown_accuracy``: share of patches that are right about showing a shape; ``centre_pixels``: median error of
        the centre that a patch predicts.
    """
    answers = {name: answer.float() for name, answer in answers.items()}
    alone, shown = truth.formula >= 0, truth.shown > 0
    angles = [torch.atan2(turn[alone, 1], turn[alone, 0]) for turn in (answers["turn"], truth.turn)]
    apart = (angles[0] - angles[1] + math.pi) % (2 * math.pi) - math.pi
    offsets = 16 * (answers["poses"] - truth.poses)[shown][:, :2]
    return {
        "formula_top1": float((answers["formula"].argmax(dim=1) == truth.formula)[alone].float().mean()),
        "turn_degrees": float(apart.abs().median()) * 180 / math.pi,
        "shown_accuracy": float(((answers["shown"] > 0) == shown).float().mean()),
        "centre_pixels": float(offsets.norm(dim=1).median()),
    }
