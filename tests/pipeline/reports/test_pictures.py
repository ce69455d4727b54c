"""The pictures of a run: whole PNG files for any number of classes, whatever the names hold."""

import threading
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from pipeline.reports import pictures
from pipeline.reports.pictures import confusion_matrix, training_curve
from pipeline.tasks.kinds import TOP1, Measure


def names(count: int) -> list[str]:
    return [f"class {i}" for i in range(count)]


def pixels(path: Path) -> np.ndarray:
    """(height, width, RGBA) in [0, 1]; fails where the file is no whole PNG."""
    assert path.read_bytes().startswith(b"\x89PNG")
    return np.asarray(matplotlib.image.imread(path))


def share_of(picture: np.ndarray, *, blue: bool) -> float:
    """How much of a picture is clearly blue (right predictions), or clearly orange (wrong ones)."""
    red_minus_blue = picture[..., 0] - picture[..., 2]
    return float((red_minus_blue < -0.3).mean() if blue else (red_minus_blue > 0.3).mean())


@pytest.mark.parametrize("classes", [1, 2, 5, 16, 17, 100, 397])
def test_any_number_of_classes_gives_a_picture_of_bounded_size(tmp_path: Path, classes: int) -> None:
    confusion_matrix(np.eye(classes, dtype=int) * 3, names(classes), tmp_path / "new" / "m.png", title="vtab-dtd")
    height, width, _ = pixels(tmp_path / "new" / "m.png").shape
    assert 200 < height < 2500
    assert 200 < width < 2900


def test_right_predictions_are_blue_and_wrong_ones_orange(tmp_path: Path) -> None:
    confusion_matrix(np.eye(20, dtype=int) * 9, names(20), tmp_path / "right.png")
    confusion_matrix(np.roll(np.eye(20, dtype=int), 1, axis=1) * 9, names(20), tmp_path / "wrong.png")
    right, wrong = pixels(tmp_path / "right.png"), pixels(tmp_path / "wrong.png")
    assert share_of(right, blue=True) > 5 * share_of(wrong, blue=True)
    assert share_of(wrong, blue=False) > 5 * share_of(right, blue=False)


def test_names_with_dollars_braces_and_great_length_are_drawn_as_they_are(tmp_path: Path) -> None:
    confusion_matrix(np.eye(3, dtype=int), ["$\\frac{", "a" * 200, "_^{}$x$"], tmp_path / "m.png", title="$\\bad{")
    pixels(tmp_path / "m.png")


def test_a_class_without_images_and_no_images_at_all_are_drawn(tmp_path: Path) -> None:
    confusion_matrix(np.array([[2, 1], [0, 0]]), names(2), tmp_path / "one.png")
    confusion_matrix(np.zeros((30, 30), dtype=int), names(30), tmp_path / "none.png")
    pixels(tmp_path / "none.png")


def test_counts_that_do_not_fit_the_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 3\) for 2 classes"):
        confusion_matrix(np.eye(3), names(2), tmp_path / "m.png")
    assert not (tmp_path / "m.png").exists()


@pytest.mark.parametrize("epochs", [1, 40])
def test_a_curve_is_drawn_with_and_without_results(tmp_path: Path, epochs: int) -> None:
    history: list[dict[str, Any]] = [
        {"epoch": epoch + 1, "train/loss": 1 / (epoch + 1), "learning_rate": 1e-3, "val/top1": epoch / epochs}
        for epoch in range(epochs)
    ]
    history[-1]["test/top1"] = 0.5
    losses = [{"epoch": row["epoch"], "train/loss": row["train/loss"]} for row in history]
    training_curve(history, tmp_path / "with.png", measures=(TOP1,), title="vtab-dtd, selection")
    training_curve(losses, tmp_path / "bare.png", measures=(TOP1,))
    assert pixels(tmp_path / "with.png").shape[0] > pixels(tmp_path / "bare.png").shape[0]


def test_results_of_other_units_have_a_panel_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "save", lambda figure, path, dpi: drawn.append(figure))
    error = Measure(name="mae", unit="px", higher_is_better=False)
    rows = [{"epoch": n, "train/loss": 1.0, "val/mae": 2.0 / n, "val/top1": 0.5, "val/r2": -0.5} for n in (1, 2)]
    training_curve(rows, tmp_path / "m.png", measures=(error, TOP1))
    panels = {axes.get_ylabel(): axes for axes in drawn[0].axes}
    assert list(panels) == ["training loss", "px", "", "per cent", "learning rate"]
    (curve,) = panels["px"].get_lines()
    assert (list(curve.get_ydata()), curve.get_label()) == ([2.0, 1.0], "val/mae  1 px")
    assert list(panels["per cent"].get_lines()[0].get_ydata()) == [50.0, 50.0]
    assert panels[""].get_ylim()[0] < -0.5


def test_an_empty_history_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one epoch"):
        training_curve([], tmp_path / "m.png", measures=(TOP1,))


def test_pictures_of_several_threads_are_the_same_as_of_one(tmp_path: Path) -> None:
    def draw(name: str) -> None:
        confusion_matrix(np.eye(20, dtype=int), names(20), tmp_path / f"{name}.png")

    draw("alone")
    threads = [threading.Thread(target=draw, args=(f"thread {i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = (tmp_path / "alone.png").read_bytes()
    assert all((tmp_path / f"thread {i}.png").read_bytes() == alone for i in range(3))
