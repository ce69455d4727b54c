"""The pictures of a search: what is drawn where, for many trials and for none that succeeded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.reports import search_pictures
from pipeline.reports.search_pictures import (
    importance_bars,
    parallel_coordinates,
    result_against_parameters,
    trial_curves,
)
from pipeline.reports.style import GREY, INK, ORANGE
from pipeline.search.space import Choice, Space, label
from pipeline.tasks.kinds import TOP1, Measure
from tests.pipeline.reports.figure_content import assert_apart, named, texts, words
from tests.pipeline.reports.made_trials import SPACE, WIDE, best, failed, many, trial


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that would be saved, laid out, in order; no file is written."""
    saved: list[Figure] = []

    def keep(figure: Figure, path: str | Path, *, dpi: int) -> None:
        figure.draw_without_rendering()
        saved.append(figure)

    monkeypatch.setattr(search_pictures, "save", keep)
    return saved


def thick(figure: Figure, trials: list[dict[str, Any]]) -> dict[int, str]:
    """The trials whose lines are drawn thick, and their colours."""
    artists = named(figure)
    lines = {one["number"]: artists[f"trial {one['number']}"] for one in trials}
    return {n: matplotlib.colors.to_hex(line.get_color()) for n, line in lines.items() if line.get_linewidth() > 2}


Draw = Callable[[list[dict[str, Any]], Path, int | None], None]
DRAW: dict[str, Draw] = {
    "coordinates": lambda trials, path, winner: parallel_coordinates(
        trials, SPACE, path, title="dtd $_{", winner=winner, measure=TOP1
    ),
    "parameters": lambda trials, path, winner: result_against_parameters(
        trials, path, title="dtd $_{", winner=winner, measure=TOP1
    ),
    "curves": lambda trials, path, winner: trial_curves(
        trials, (1, 3), path, title="dtd $_{", winner=winner, measure=TOP1
    ),
}
every_picture = pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)


@every_picture
def test_every_picture_is_a_png_file(tmp_path: Path, draw: Draw) -> None:
    draw(many(6), tmp_path / "new" / "s.png", None)
    height, width, _ = matplotlib.image.imread(tmp_path / "new" / "s.png").shape
    assert 500 < height < 900
    assert 700 < width < 1500


@every_picture
def test_every_picture_has_title_counts_default_and_winner(tmp_path: Path, figures: list[Figure], draw: Draw) -> None:
    trials = many(12)
    draw(trials, tmp_path / "s.png", best(trials))
    shown = words(figures[0])
    assert "dtd $_{" in shown
    assert "12 trials: 5 whole, 5 stopped early, 2 failed" in shown
    assert "default: trial 0, 61.0 %" in shown
    assert f"winner: trial {best(trials)}, {100 * trials[best(trials)]['value']:.1f} %" in shown
    assert_apart(texts(figures[0]))


@every_picture
def test_where_all_failed_the_picture_says_so_and_why(tmp_path: Path, figures: list[Figure], draw: Draw) -> None:
    trials = [failed(0, "out of memory"), failed(1), failed(2, "out of memory"), failed(3, "$\\frac{" * 90)]
    draw(trials, tmp_path / "s.png", None)
    shown = words(figures[0])
    assert "all 4 trials failed" in shown
    assert "2 × out of memory" in shown
    assert "1 × the loss is not finite" in shown
    for text in texts(figures[0]):
        box = text.get_window_extent()
        assert box.x1 < figures[0].bbox.x1, text.get_text()
        assert box.y0 > figures[0].bbox.y0 - 20, text.get_text()


@every_picture
@pytest.mark.parametrize(
    ("trials", "note"),
    [
        ([trial(0)], "1 trial: nothing to compare it with"),
        ([failed(0)], "the only trial failed"),
        ([failed(0, values={}), trial(1, whole=False, epochs=3)], "2 trials: none whole, 1 stopped early, 1 failed"),
    ],
)
def test_few_trials_give_a_picture_that_says_so(
    tmp_path: Path, figures: list[Figure], draw: Draw, trials: list[dict[str, Any]], note: str
) -> None:
    draw(trials, tmp_path / "s.png", None)
    assert note in words(figures[0])


@every_picture
def test_equal_trials_are_drawn(tmp_path: Path, figures: list[Figure], draw: Draw) -> None:
    draw([trial(0), trial(1), trial(2, value=0.0, whole=False, epochs=1)], tmp_path / "s.png", 0)
    assert "default and winner: trial 0, 70.0 %" in words(figures[0])


@every_picture
def test_no_trials_and_a_winner_that_is_none_of_them_are_refused(tmp_path: Path, draw: Draw) -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        draw([], tmp_path / "s.png", None)
    with pytest.raises(ValueError, match=r"winner 7: expected one of the trials \[0, 1\]"):
        draw([trial(0), trial(1)], tmp_path / "s.png", 7)
    assert not (tmp_path / "s.png").exists()


@pytest.mark.parametrize(("space", "count"), [(SPACE, 12), (SPACE, 40), (WIDE, 100)])
def test_every_line_passes_its_values(tmp_path: Path, figures: list[Figure], space: Space, count: int) -> None:
    trials = many(count, space)
    parallel_coordinates(trials, space, tmp_path / "s.png", title="dtd", winner=None, measure=TOP1)
    (figure,) = figures
    axes: Any = figure.axes[0]
    artists = named(figure)
    places = artists["trial 0"].get_xdata()
    names = [next(t for t in axes.texts if t.get_text() == name) for name in (*space, "val, per cent")]
    assert [name.get_position()[0] for name in names] == list(places)
    for column, (name, part) in enumerate(space.items()):
        if not isinstance(part, Choice):
            continue
        ticks = {
            text.xy[1]: text.get_text() for text in axes.texts if getattr(text, "xy", (None,))[0] == places[column]
        }
        for one in trials:
            line = artists[f"trial {one['number']}"]
            assert list(line.get_xdata()) == list(places)
            nearest = min(ticks, key=lambda height: abs(height - line.get_ydata()[column]))
            assert ticks[nearest] == label(one["point"][name])
    assert_apart(texts(figure))


def test_lines_do_not_hide_each_other_at_a_choice(tmp_path: Path, figures: list[Figure]) -> None:
    trials = many(40)
    parallel_coordinates(trials, SPACE, tmp_path / "s.png", title="dtd", winner=None, measure=TOP1)
    artists = named(figures[0])
    for column, part in enumerate(SPACE.values()):
        if isinstance(part, Choice):
            heights = [artists[f"trial {n}"].get_ydata()[column] for n in range(40)]
            assert len(set(heights)) == 40
            assert min(heights) >= 0
            assert max(heights) <= 1


def test_lines_end_at_their_results(tmp_path: Path, figures: list[Figure]) -> None:
    results = [0.70, 0.75, 0.80, 0.72]
    trials = [trial(n, value=value) for n, value in enumerate(results)]
    trials += [trial(4, value=0.3, whole=False, epochs=3), trial(5, value=0.74, whole=False, epochs=3), failed(6)]
    parallel_coordinates(trials, SPACE, tmp_path / "s.png", title="dtd", winner=None, measure=TOP1)
    artists = named(figures[0])
    ends = [artists[f"trial {n}"].get_ydata()[-1] for n in range(7)]
    assert ends[:4] == pytest.approx([0, 0.5, 1, 0.2])
    assert ends[5] == pytest.approx(0.4)
    assert ends[6] < ends[4] < 0
    assert [matplotlib.colors.to_hex(artists[f"trial {n}"].get_color()) for n in (4, 6)] == [GREY, GREY]
    labels = {text.xy[1]: text.get_text() for text in figures[0].axes[0].texts if hasattr(text, "xy")}
    assert (labels[ends[4]], labels[ends[6]]) == ("< 70.0", "failed")


MAE = Measure(name="mae", unit="px", higher_is_better=False)


def test_where_lower_is_better_the_lowest_result_is_on_top_with_its_own_number(
    tmp_path: Path, figures: list[Figure]
) -> None:
    trials = [trial(n, value=value, parameters=1000 * (9 - n)) for n, value in enumerate((0.30, 0.25, 0.20, 0.28))]
    trials.append(trial(4, value=5.0, whole=False, epochs=3))
    parallel_coordinates(trials, SPACE, tmp_path / "s.png", title="dtd", winner=2, measure=MAE)
    result_against_parameters(trials, tmp_path / "s.png", title="dtd", winner=2, measure=MAE)
    trial_curves(trials, (3,), tmp_path / "s.png", title="dtd", winner=2, measure=MAE)
    columns, spots, curves = figures
    lines = [named(columns)[f"trial {n}"] for n in range(5)]
    ends = [line.get_ydata()[-1] for line in lines]
    assert ends[:4] == pytest.approx([0, 0.5, 1, 0.2])
    column = lines[0].get_xdata()[-1]
    beside: list[Any] = [text for text in columns.axes[0].texts if getattr(text, "xy", (None,))[0] == column]
    labels = {text.xy[1]: text.get_text() for text in beside}
    assert (labels[0], labels[1], labels[ends[4]]) == ("0.3", "0.2", "> 0.3")
    for figure in figures:
        assert "val mae, px" in words(figure)
        assert "winner: trial 2, 0.2 px" in words(figure)
    assert "stopped early (above 0.3 px)" in words(spots)
    for figure in (spots, curves):
        bottom, top = figure.axes[0].get_ylim()
        labelled = zip(figure.axes[0].get_yticks(), figure.axes[0].get_yticklabels(), strict=True)
        shown = {height: text.get_text() for height, text in labelled if bottom <= height <= min(top, 0)}
        assert [float(text) for text in shown.values()] == pytest.approx([-height for height in shown])
    assert list(named(spots)["front"].get_xdata()[:2]) == [6000, 7000], "better or smaller: trials 3 and 2"


def test_labels_of_results_that_hardly_differ_do(tmp_path: Path, figures: list[Figure]) -> None:
    trials = [trial(n, value=value) for n, value in enumerate((0.9892, 0.9894, 0.9895))]
    parallel_coordinates(trials, {}, tmp_path / "s.png", title="dtd", winner=None, measure=TOP1)
    labels = [text.get_text() for text in figures[0].axes[0].texts if hasattr(text, "xy")]
    assert len(labels) > 2
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(("number", "end"), [(5, "< 70.0"), (0, "20")])
def test_a_whole_trial_that_came_to_nothing_presses_no_others_together_unless_it_is_the_default(
    tmp_path: Path, figures: list[Figure], number: int, end: str
) -> None:
    trials = [trial(n, value=value) for n, value in zip((1, 2, 3, number), (0.7, 0.71, 0.73, 0.2), strict=True)]
    parallel_coordinates(trials, SPACE, tmp_path / "s.png", title="dtd", winner=None, measure=TOP1)
    height = named(figures[0])[f"trial {number}"].get_ydata()[-1]
    labels = {text.xy[1]: text.get_text() for text in figures[0].axes[0].texts if hasattr(text, "xy")}
    assert labels[height] == end


def test_better_results_are_darker_and_stopped_trials_thin_and_faded(tmp_path: Path, figures: list[Figure]) -> None:
    trials = [trial(n, value=0.7 + 0.01 * n) for n in range(6)]
    trials += [trial(6, value=0.72, whole=False, epochs=3), failed(7)]
    parallel_coordinates(trials, SPACE, tmp_path / "s.png", title="dtd", winner=None, measure=TOP1)
    artists = named(figures[0])
    lines = [artists[f"trial {n}"] for n in range(8)]
    light = [sum(matplotlib.colors.to_rgb(line.get_color())) for line in lines[1:6]]
    assert light == sorted(light, reverse=True)
    assert len(set(light)) == 5
    assert lines[6].get_linewidth() < lines[1].get_linewidth()
    assert lines[6].get_alpha() < lines[1].get_alpha()
    assert lines[6].get_color() == lines[2].get_color()
    assert lines[7].get_linestyle() == ":"


@pytest.mark.parametrize("name", ["coordinates", "curves"])
def test_only_default_and_winner_are_thick(tmp_path: Path, figures: list[Figure], name: str) -> None:
    trials = many(12)
    DRAW[name](trials, tmp_path / "s.png", 4)
    DRAW[name](trials, tmp_path / "s.png", 0)
    DRAW[name](trials, tmp_path / "s.png", None)
    assert [thick(figure, trials) for figure in figures] == [{0: INK, 4: ORANGE}, {0: ORANGE}, {0: INK}]


def test_spots_lie_at_parameters_and_result(tmp_path: Path, figures: list[Figure]) -> None:
    trials = [
        trial(0, value=0.70, parameters=1_000_000),
        trial(1, value=0.74, parameters=2_000_000),
        trial(2, value=0.72, parameters=400_000, whole=False, epochs=3),
        trial(3, value=0.20, parameters=300_000, whole=False, epochs=1),
        failed(4),
    ]
    result_against_parameters(trials, tmp_path / "s.png", title="dtd", winner=1, measure=TOP1)
    (figure,) = figures
    artists = named(figure)
    spots = [artists[f"trial {n}"] for n in range(4)]
    assert [float(spot.get_xdata()[0]) for spot in spots] == [1_000_000, 2_000_000, 400_000, 300_000]
    assert [float(spot.get_ydata()[0]) for spot in spots[:3]] == pytest.approx([70, 74, 72])
    assert figure.axes[0].get_ylim()[0] < spots[3].get_ydata()[0] < 70
    assert "stopped early (below 70.0 %)" in words(figure)
    assert [spot.get_marker() for spot in spots] == ["o", "o", "o", "v"]
    assert [spot.get_markerfacecolor() for spot in spots] == [INK, ORANGE, "none", "none"]
    assert figure.axes[0].get_xscale() == "log"
    assert "trial 4" not in artists


def test_the_front_is_a_stair_of_whole_trials_with_their_numbers(tmp_path: Path, figures: list[Figure]) -> None:
    results = {0: (0.70, 500), 1: (0.74, 900), 2: (0.69, 800), 3: (0.72, 600), 4: (0.74, 950), 5: (0.71, 600)}
    trials = [trial(n, value=value, parameters=1000 * size) for n, (value, size) in results.items()]
    trials.append(trial(6, value=0.8, parameters=400_000, whole=False, epochs=3))
    result_against_parameters(trials, tmp_path / "s.png", title="dtd", winner=1, measure=TOP1)
    (figure,) = figures
    front = named(figure)["front"]
    assert list(front.get_xdata()[:3]) == [500_000, 600_000, 900_000]
    assert list(front.get_ydata()) == pytest.approx([70, 72, 74, 74])
    assert front.get_xdata()[3] == pytest.approx(figure.axes[0].get_xlim()[1])
    assert front.get_drawstyle() == "steps-post"
    assert sorted(name for name in named(figure) if name.startswith("number")) == ["number 0", "number 1", "number 3"]


def test_numbers_on_a_crowded_front_do_not_lie_on_each_other(tmp_path: Path, figures: list[Figure]) -> None:
    trials = [trial(n, value=0.7 + 0.001 * n, parameters=500_000 + 9_000 * n) for n in range(100, 108)]
    trials += [trial(0, value=0.6, parameters=400_000), trial(1, value=0.9, parameters=3_000_000)]
    result_against_parameters(trials, tmp_path / "s.png", title="dtd", winner=1, measure=TOP1)
    numbers = [text for text in texts(figures[0]) if str(text.get_gid()).startswith("number")]
    assert len(numbers) == 10
    assert_apart(numbers)


@pytest.mark.parametrize("parameters", [(900, 950), (7_000, 7_000), (200_000, 2_500_000), (50_000, 90_000_000)])
def test_the_parameter_axis_has_ticks_that_lie_apart(
    tmp_path: Path, figures: list[Figure], parameters: tuple[int, int]
) -> None:
    trials = [trial(n, parameters=number) for n, number in enumerate(parameters)]
    result_against_parameters(trials, tmp_path / "s.png", title="dtd", winner=None, measure=TOP1)
    (figure,) = figures
    low, high = figure.axes[0].get_xlim()
    assert 2 <= sum(low <= x <= high for x in figure.axes[0].get_xticks()) <= 12
    assert_apart([text for text in figure.axes[0].get_xticklabels() if text.get_text()])


def test_curves_go_as_far_as_their_trials_count(tmp_path: Path, figures: list[Figure]) -> None:
    trials = [
        trial(0, values={3: 0.1, 6: 0.5, 9: 0.7}),
        trial(1, values={3: 0.2, 6: 0.3, 9: 0.4}, value=0.3, whole=False, epochs=6),
        failed(2, values={1: 0.25}),
    ]
    trial_curves(trials, (3, 6), tmp_path / "s.png", title="dtd", winner=0, measure=TOP1)
    (figure,) = figures
    artists = named(figure)
    curves = [artists[f"trial {n}"] for n in range(3)]
    assert [list(curve.get_xdata()) for curve in curves] == [[3, 6, 9], [3, 6], [1]]
    assert [list(curve.get_ydata()) for curve in curves] == [
        pytest.approx([10, 50, 70]), pytest.approx([20, 30]), pytest.approx([25]),
    ]  # fmt: skip
    assert [curve.get_marker() for curve in curves] == ["o", "o", "x"]
    assert [list(artists[f"rung {rung}"].get_xdata()) for rung in (3, 6)] == [[3, 3], [6, 6]]


def test_without_rungs_nothing_is_said_of_them(tmp_path: Path, figures: list[Figure]) -> None:
    trial_curves([trial(0), trial(1)], (4,), tmp_path / "s.png", title="dtd", winner=None, measure=TOP1)
    trial_curves([trial(0), trial(1)], (), tmp_path / "s.png", title="dtd", winner=None, measure=TOP1)
    assert ["trials are compared" in words(figure) for figure in figures] == [True, False]


def test_bars_have_their_shares_the_largest_on_top(tmp_path: Path, figures: list[Figure]) -> None:
    shares = {"widths": 0.25, "learning_rate": 0.7, "a$_{": 0.05, "drop_path": 0.0}
    importance_bars(shares, tmp_path / "s.png", title="dtd")
    axes: Any = figures[0].axes[0]
    heights = {text.get_text(): text.get_window_extent().y0 for text in axes.get_yticklabels()}
    assert sorted(heights, key=lambda name: -heights[name]) == ["learning_rate", "widths", "a$_{", "drop_path"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([70, 25, 5, 0])
    assert np.all(np.diff([axes.transData.transform((0, bar.get_y()))[1] for bar in axes.patches]) < 0)
    assert {"70 %", "25 %", "5 %", "0 %"} <= set(words(figures[0]).split("\n"))


def test_without_importance_the_picture_says_so(tmp_path: Path, figures: list[Figure]) -> None:
    importance_bars({}, tmp_path / "s.png", title="dtd")
    assert "too few trials" in words(figures[0])
