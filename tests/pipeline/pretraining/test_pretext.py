"""The questions to the ViT: right answers cost nothing, and every parameter learns from the questions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from pipeline.pretraining.drawings import Drawings, draw_batch
from pipeline.pretraining.formulas import NUM_FORMULAS, build_formulas
from pipeline.pretraining.pretext import WEIGHTS, Pretext, losses, scores, total


@pytest.fixture(scope="module")
def truth() -> Drawings:
    return draw_batch(build_formulas(0), 24, 0, "test", 0)


def right_answers(truth: Drawings) -> dict[str, torch.Tensor]:
    formula = 50.0 * F.one_hot(truth.formula.clamp(min=0), NUM_FORMULAS)
    return {
        "formula": formula,
        "formula_of_patches": formula,
        "turn": truth.turn,
        "reach": truth.reach,
        "centres": torch.logit(truth.centres, eps=1e-6),
        "shown": 50 * (2 * truth.shown - 1),
        "poses": truth.poses,
        "reaches": truth.reaches,
    }


def test_right_answers_cost_nothing_and_score_all(truth: Drawings) -> None:
    parts = losses(right_answers(truth), truth)
    assert parts.keys() == WEIGHTS.keys()
    assert all(float(parts[name]) < 1e-5 for name in parts if name != "centres")
    split = torch.special.entr(truth.centres) + torch.special.entr(1 - truth.centres)  # a split centre's loss
    assert float(parts["centres"]) == pytest.approx(float(split.mean()), abs=1e-4)
    measured = scores(right_answers(truth), truth)
    assert measured["formula_top1"] == measured["shown_accuracy"] == 1
    assert measured["turn_degrees"] == pytest.approx(0, abs=0.1)
    assert measured["centre_pixels"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", list(WEIGHTS))
def test_a_wrong_answer_costs(name: str, truth: Drawings) -> None:
    answers = right_answers(truth)
    wrong = answers | {name: answers[name].roll(1, dims=-1)}
    if name == "shown":
        wrong = answers | {name: -answers[name]}
    before, after = losses(answers, truth), losses(wrong, truth)
    assert float(after[name]) > float(before[name]) + 0.01
    assert all(torch.equal(after[other], before[other]) for other in WEIGHTS if other != name)


def test_what_a_picture_cannot_tell_is_not_asked(truth: Drawings) -> None:
    """Pictures of several shapes are not asked for formula, turn and reach, nor empty patches for a pose."""
    answers = right_answers(truth)
    several, empty = truth.formula < 0, truth.shown == 0
    changed = {name: value.clone() for name, value in answers.items()}
    for name in ("formula", "formula_of_patches", "turn", "reach"):
        changed[name][several] = 7.0
    for name in ("poses", "reaches"):
        changed[name][empty] = 7.0
    assert losses(changed, truth) == losses(answers, truth)
    assert scores(changed, truth) == scores(answers, truth)


def test_a_batch_without_a_shape_alone_has_a_finite_loss(truth: Drawings) -> None:
    none = dataclasses.replace(truth, formula=torch.full_like(truth.formula, -1))
    assert torch.isfinite(total(losses(right_answers(truth), none)))


def test_every_parameter_learns_and_the_first_ones_are_a_function_of_the_seed(truth: Drawings) -> None:
    model, again, other = (Pretext("hst_vit_micro_patch8_64", seed) for seed in (0, 0, 1))
    answers = model(truth.images)
    assert {name: answer.shape for name, answer in answers.items()} == {
        name: answer.shape for name, answer in right_answers(truth).items()
    }
    total(losses(answers, truth)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert not torch.equal(other.formula.weight, model.formula.weight)
