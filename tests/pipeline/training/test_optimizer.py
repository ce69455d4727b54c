import pytest

from hst.backbone import load_backbone
from hst.config import HSNConfig
from hst.model import build_classifier
from pipeline.tasks.recipe import Recipe
from pipeline.training.optimizer import learning_rate, parameter_groups


def test_weight_decay_spares_biases_and_vectors_and_not_registers() -> None:
    model = build_classifier(load_backbone("hst_vit_micro_patch8_64", "random"), HSNConfig(), num_classes=3)
    decayed, plain = parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed_names = {names[id(p)] for p in decayed["params"]}
    assert "extractor.meta_register.tokens.0" in decayed_names
    assert "head.linear.weight" in decayed_names
    assert not any(name.endswith("bias") or ".norm" in name for name in decayed_names)
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_the_schedule_warms_up_for_a_tenth_of_the_epochs_and_ends_low() -> None:
    recipe = Recipe(epochs=100, learning_rate=1e-2)
    rates = [learning_rate(recipe, epoch) for epoch in range(100)]
    assert rates[0] == 1e-7
    assert rates[5] == pytest.approx(1e-7 + 0.5 * (1e-2 - 1e-7))
    assert max(rates) == rates[10] == pytest.approx(1e-8 + (1e-2 - 1e-8) * 0.9755282581475768)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[50] == pytest.approx(0.5e-2, rel=1e-5)


@pytest.mark.parametrize(("epochs", "first"), [(9, 1e-2), (10, 1e-7), (19, 1e-7)])
def test_fewer_than_ten_epochs_have_no_warm_up(epochs: int, first: float) -> None:
    assert learning_rate(Recipe(epochs=epochs, learning_rate=1e-2), 0) == first
