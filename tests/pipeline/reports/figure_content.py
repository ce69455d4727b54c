"""What is in a figure: its named artists, its texts, and whether these can be read."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text


def named(figure: Figure) -> dict[str, Any]:
    """The lines and texts that have a gid, by it; fails where one occurs twice."""
    found = figure.findobj(lambda artist: artist.get_gid() is not None)
    by_name = {str(artist.get_gid()): artist for artist in found}
    assert len(by_name) == len(found)
    return by_name


def texts(figure: Figure) -> list[Text]:
    """Those that are seen."""
    hidden = [tick for axes in figure.findobj(Axes) if not axes.axison for tick in axes.xaxis.findobj(Text)]
    hidden += [tick for axes in figure.findobj(Axes) if not axes.axison for tick in axes.yaxis.findobj(Text)]
    hidden += [text for text in figure.findobj(Text) if not text.get_visible()]
    return [text for text in figure.findobj(Text) if text.get_text().strip() and text not in hidden]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in texts(figure))


def assert_apart(drawn: list[Text]) -> None:
    """No two texts lie on each other."""
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in drawn]
    for i, (name, box) in enumerate(boxes):
        for other, place in boxes[:i]:
            assert not box.padded(-1).overlaps(place.padded(-1)), f"{name!r} lies on {other!r}"
