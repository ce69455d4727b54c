"""Made-up trials of a search."""

import random
from typing import Any

from hst.config import HSNConfig
from pipeline.search.space import Choice, Range, Space, default_space

SPACE = default_space(HSNConfig().resolve(12), 12)
DEFAULT = {
    "widths": [32, 48, 64, 72],
    "depths": [3, 3, 3, 3],
    "num_registers": 1,
    "learning_rate": 1e-3,
    "weight_decay": 5e-4,
    "drop_path": 0.1,
}
WIDE: Space = {
    **SPACE,
    "mixup": Range(low=0.0, high=1.0, log=False),
    "batch_size": Choice((32, 64, 128)),
    "a_field_with_a_long_name": Choice(("conv", "attention", None)),
    "warmup_epochs": Range(low=1, high=12, log=False, whole=True),
}


def trial(number: int, **given: Any) -> dict[str, Any]:
    """A whole one of 9 epochs with 70 %, unless something else is given."""
    made: dict[str, Any] = {
        "number": number,
        "point": DEFAULT,
        "value": 0.7,
        "whole": True,
        "epochs": 9,
        "parameters": 10**6,
    }
    made = {**made, "failed": None, **given}
    reached = made["value"] or 0.1
    return {"values": {epoch: reached * epoch / made["epochs"] for epoch in range(1, made["epochs"] + 1)}, **made}


def failed(number: int, reason: str = "the loss is not finite", **given: Any) -> dict[str, Any]:
    return trial(number, value=None, whole=False, epochs=2, failed=reason, **given)


def many(count: int, space: Space = SPACE) -> list[dict[str, Any]]:
    """The default and trials of random points: of every six two are whole, three were stopped, one has failed."""
    draw = random.Random(0)
    trials = [trial(0, value=0.61, point={**{name: _drawn(part, draw) for name, part in space.items()}, **DEFAULT})]
    for number in range(1, count):
        point = {name: _drawn(part, draw) for name, part in space.items()}
        parameters = draw.randrange(200_000, 2_000_000)
        if number % 6 == 5:
            trials.append(failed(number, point=point, parameters=parameters))
        elif number % 3 == 1:
            trials.append(trial(number, point=point, value=0.6 + 0.15 * draw.random(), parameters=parameters))
        else:
            given: dict[str, Any] = {"value": 0.2 + 0.5 * draw.random(), "whole": False, "epochs": 3}
            trials.append(trial(number, point=point, parameters=parameters, **given))
    return trials


def _drawn(part: Choice | Range, draw: random.Random) -> Any:
    if isinstance(part, Choice):
        return draw.choice(part.values)
    if part.whole:
        return draw.randint(int(part.low), int(part.high))
    if part.log:
        return part.low * (part.high / part.low) ** draw.random()
    return draw.uniform(part.low, part.high)


def best(trials: list[dict[str, Any]]) -> int:
    return max((one for one in trials if one["whole"]), key=lambda one: one["value"])["number"]
