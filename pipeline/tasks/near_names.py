"""Guesses what a person meant by an unknown name."""

import difflib
from collections.abc import Collection

# Usual names of our fields elsewhere, whose spelling is too different for difflib.
_USUAL_NAMES = {
    "lr": "learning_rate",
    "lr_min": "min_learning_rate",
    "min_lr": "min_learning_rate",
    "warmup_lr": "warmup_learning_rate",
    "wd": "weight_decay",
    "decay": "weight_decay",
    "bs": "batch_size",
    "num_epochs": "epochs",
    "size": "image_size",
    "img_size": "image_size",
    "input_size": "image_size",
    "resolution": "image_size",
    "smoothing": "label_smoothing",
    "flip": "horizontal_flip",
    "hflip": "horizontal_flip",
    "grad_clip": "clip_norm",
    "clip_grad": "clip_norm",
    "accum": "accumulation_steps",
    "accum_steps": "accumulation_steps",
    "reprob": "random_erasing",
    "dtype": "precision",
    "registers": "num_registers",
}


def near_names(name: str, names: Collection[str]) -> str:
    """A question that suggests the names most like a name; empty if none is like it."""
    usual = _USUAL_NAMES.get(name.lower().replace("-", "_"), "")
    close = [usual] if usual in names else difflib.get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(close)}?" if close else ""
