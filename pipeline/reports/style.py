"""How the project's pictures look, and how one is saved.

They are drawn on figures of our own, not through pyplot: no global state, no display. matplotlib is not made for
threads, so one picture is drawn at a time.
"""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DRAWING = threading.Lock()
"""Held while a picture is drawn and saved."""
INK, GREY, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, ORANGE, GREEN = "#1f5fa8", "#d9622b", "#2e8b57"


def clear_frame(axes: Any) -> None:
    """Replace the frame and the ticks by a light grid."""
    axes.tick_params(length=0, colors=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def short(name: str, most: int = 28) -> str:
    """The name, cut where it is longer than ``most`` characters."""
    return name if len(name) <= most else name[: most - 1] + "…"


def save(figure: Figure, path: str | Path, *, dpi: int) -> None:
    """Write a figure to a file (.png, or .jpg for what is mostly photos), whose folder is made if need be."""
    FigureCanvasAgg(figure)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # a script that the font lacks is drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        kind = {".png": "png", ".jpg": "jpeg"}[Path(path).suffix]
        figure.savefig(path, format=kind, dpi=dpi, bbox_inches="tight", pad_inches=0.15)
