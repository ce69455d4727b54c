"""The numbers of a pretraining; with the defaults it makes the file that the package ships."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Everything that the weights depend on, beside the code. The defaults are those of the shipped file."""

    backbone: str = "hst_vit_micro_patch8_64"
    """A name of `hst.vit.weights.PROJECT_VITS`."""
    seed: int = 0
    """Of the formulas, the drawings and the first weights."""
    steps: int = 4200
    """Batches in all."""
    batch_size: int = 64
    """Drawings a step."""
    learning_rate: float = 7e-4
    """Of AdamW, from the end of the warm-up to the beginning of the fall."""
    weight_decay: float = 0.05
    """Of matrices; none of biases, norms, tokens and positions."""
    warmup_steps: int = 200
    """From 0 to the learning rate, in equal steps."""
    fall: float = 0.3
    """The last part of the steps, in (0, 1], over which the learning rate falls to 0 in equal steps."""
    held_out_batches: int = 32
    """Drawings of the same formulas, never trained on, that the result is measured by."""

    def __post_init__(self) -> None:
        """Raises ValueError with every impossible field."""
        faults = [
            f"{name}={getattr(self, name)!r}: expected a whole number, at least {least}"
            for name, least in (("steps", 1), ("batch_size", 2), ("warmup_steps", 0), ("held_out_batches", 1))
            if getattr(self, name) < least
        ]
        if not self.learning_rate > 0:
            faults.append(f"learning_rate={self.learning_rate!r}: expected a number above 0")
        if not 0 < self.fall <= 1:
            faults.append(f"fall={self.fall!r}: expected a number above 0, at most 1")
        if faults:
            raise ValueError("; ".join(faults))

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        warm = (step + 1) / (self.warmup_steps + 1)
        left = (self.steps - step) / max(1, round(self.fall * self.steps))
        return self.learning_rate * min(1.0, warm, left)
