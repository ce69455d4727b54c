"""The drill's tasks: demo data drawn from two seeds, declared in a task file like a user's own tasks."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.demo import DEMO_TASKS, make_demo_task
from pipeline.tasks.kinds import measure_of

TASKS: dict[str, tuple[str, int]] = {
    # name -> (demo task that is drawn, seed)
    "drill-digits": ("digits", 0),
    "drill-shape_x": ("shape_x", 0),
    "drill-shape_orientation": ("shape_orientation", 0),
    "drill-shape_count": ("shape_count", 0),
    "drill-digits-2": ("digits", 1),
    "drill-shape_x-2": ("shape_x", 1),
}
MEASURE = measure_of("classification")
"""The measure of all drill tasks. Their file names no kind, so they are classification."""
_RECIPE = {"image_size": 64, "batch_size": 16, "learning_rate": 5e-3}


def draw_tasks(folder: Path, names: list[str], *, epochs: int) -> Path:
    """Draw the images of some tasks below a folder; returns the task file that names them.

    Args:
        folder: a new folder.
        names: keys of TASKS.
        epochs: the number of epochs of each task.
    """
    folder.mkdir(parents=True)
    tables = []
    for name in names:
        drawing, seed = TASKS[name]
        make_demo_task(folder / name, DEMO_TASKS[drawing], seed=seed)
        recipe = "\n".join(f"{field} = {value}" for field, value in {**_RECIPE, "epochs": epochs}.items())
        tables.append(f'[tasks.{name}]\ndata = "{name}"\n\n[tasks.{name}.recipe]\n{recipe}\n')
    file = folder / "drill.toml"
    file.write_text("\n".join(tables))
    return file
