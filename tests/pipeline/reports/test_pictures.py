"""The pictures of a run: whole PNG files for any number of classes, whatever the names hold."""

import threading
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from pipeline.reports.pictures import confusion_matrix, training_curve


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
    training_curve(history, tmp_path / "with.png", title="vtab-dtd, selection")
    training_curve([{"epoch": row["epoch"], "train/loss": row["train/loss"]} for row in history], tmp_path / "bare.png")
    assert pixels(tmp_path / "with.png").shape[0] > pixels(tmp_path / "bare.png").shape[0]


def test_an_empty_history_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one epoch"):
        training_curve([], tmp_path / "m.png")


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
