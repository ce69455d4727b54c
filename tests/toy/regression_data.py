"""Images of a bright bar, and a table that says how far right it is: from 0, the left edge, to 1."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE, WIDTH = 64, 12


def write_bars(folder: Path, *, train: int = 20, test: int = 10) -> Path:
    """Writes ``samples.csv`` and its images, without a val of its own."""
    draws = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    lines = ["path,label,split"]
    for number, split in enumerate(["train"] * train + ["test"] * test):
        left = int(draws.integers(0, SIDE - WIDTH + 1))
        pixels = draws.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels[:, left : left + WIDTH] += 180
        Image.fromarray(pixels).save(folder / f"images/{number}.png")
        lines.append(f"images/{number}.png,{left / (SIDE - WIDTH)},{split}")
    (folder / "samples.csv").write_text("\n".join(lines) + "\n")
    return folder
