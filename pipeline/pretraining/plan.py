"""The numbers of a pretraining; the defaults make the file that the package ships."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Everything besides the code that the weights depend on. The defaults are those of the shipped file."""

    backbone: str = "hst_vit_micro_patch8_64"
    """A name of `hst.vit.weights.PROJECT_VITS`."""
    seed: int = 0
    """Seed of the formulas, the drawings and the initial weights."""
    steps: int = 4200
    """Number of train steps in all."""
    batch_size: int = 64
    """Drawings per step."""
    learning_rate: float = 7e-4
    """AdamW's learning rate between the end of the warm-up and the start of the fall."""
    weight_decay: float = 0.05
    """Weight decay of matrices; biases, norms, tokens and position embeddings have none."""
    warmup_steps: int = 200
    """Number of steps in which the learning rate rises linearly from 0."""
    fall: float = 0.3
    """Share of the steps, in (0, 1]: over these last steps the learning rate falls linearly to 0."""
    held_out_batches: int = 32
    """Number of batches that measure the result; they show the same formulas and are never trained on."""

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
        """The learning rate of a step, counted from 0."""
        warm = (step + 1) / (self.warmup_steps + 1)
        left = (self.steps - step) / max(1, round(self.fall * self.steps))
        return self.learning_rate * min(1.0, warm, left)
