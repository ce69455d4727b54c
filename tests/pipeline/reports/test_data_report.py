"""The report of a task's data: its numbers against the images that were given, its page and pictures for any names."""

import html.parser
import io
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from hst.images.decoding import MAX_PIXELS
from pipeline.reports import data_pictures
from pipeline.reports.data_report import Report, write_data_report
from pipeline.reports.data_summary import MAX_THUMBNAILS, Duplicates, ReportSample, summarize_split


def encoded(number: int, size: tuple[int, int] = (12, 10), kind: str = "PNG") -> bytes:
    """An image file whose colour says its number."""
    file = io.BytesIO()
    image = Image.new("RGB", size, (number % 256, number // 256, 7))
    image.putpixel((0, 0), (255, 255, 255))
    image.save(file, kind)
    return file.getvalue()


def samples(labels: Sequence[int], first: int = 0) -> list[ReportSample]:
    return [ReportSample(f"k{first + i}", label, encoded(first + i)) for i, label in enumerate(labels)]


def report(folder: Path, train: list[ReportSample], test: list[ReportSample], names: Sequence[str]) -> Report:
    return write_data_report(folder, "own-x", names, {"train": train, "test": test})


def test_counts_sizes_bytes_and_formats_are_those_of_the_images(tmp_path: Path) -> None:
    train = [*samples([0, 0, 1, 0]), ReportSample("wide", 1, encoded(9, (40, 20), "JPEG"))]
    written = report(tmp_path, train, samples([1], 100), ["cat", "dog"])
    assert json.loads((tmp_path / "data-report.json").read_text()) == json.loads(json.dumps(written.numbers))
    numbers = written.numbers["splits"]["train"]
    assert (numbers["images"], numbers["class_counts"]) == (5, [3, 2])
    assert numbers["bytes"] == sum(len(sample.image) for sample in train)
    assert numbers["width"] == {"smallest": 12, "median": 12.0, "largest": 40}
    assert numbers["height"] == {"smallest": 10, "median": 10.0, "largest": 20}
    assert numbers["formats"] == {"PNG RGB": 4, "JPEG RGB": 1}
    assert (numbers["largest_class"], numbers["smallest_class"]) == (
        {"name": "cat", "images": 3},
        {"name": "dog", "images": 2},
    )
    assert written.warnings == []
    assert {path.name for path in written.files} == {path.name for path in tmp_path.iterdir()}


def test_an_image_in_two_splits_is_found_whatever_its_key_and_label(tmp_path: Path) -> None:
    train = samples([0, 1, 0, 1])
    test = [*samples([0, 1], 100), ReportSample("copy", 1, encoded(2)), ReportSample("again", 0, encoded(2))]
    written = report(tmp_path, train, test, ["cat", "dog"])
    duplicates = written.numbers["duplicates"]
    (pair,) = duplicates["between_splits"]
    assert (pair["of"], pair["also_in"], pair["images"]) == ("test", "train", 2)
    assert pair["examples"] == [("k2", "copy"), ("k2", "again")]
    assert duplicates["within_splits"] == {"train": 0, "test": 1}
    assert duplicates["with_other_labels"]["examples"] == [["train/k2", "test/copy", "test/again"]]
    assert written.warnings[0].startswith("of 4 images of test, 2 stand in train too")
    assert "different labels: 1" in written.warnings[1]
    assert written.warnings[2:] == ["test has 1 image more than once"]
    assert "test/copy is train/k2" in written.page.read_text()
    assert "No image is in two splits" not in written.page.read_text()


def test_copies_within_a_split_are_counted_by_image_and_that_none_is_in_two_splits_is_said(tmp_path: Path) -> None:
    copies = [ReportSample(f"copy{i}", 0, encoded(i % 2)) for i in range(5)]
    written = report(tmp_path, [*samples([0, 0, 1]), *copies], samples([0, 1], 100), ["cat", "dog"])
    assert written.numbers["duplicates"]["within_splits"] == {"train": 5, "test": 0}
    assert "train has 2 images more than once" in written.warnings
    assert "<p>No image is in two splits.</p>" in written.page.read_text()


def test_the_axes_of_the_sizes_say_that_they_are_logarithmic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(data_pictures, "save", lambda figure, *_, **__: drawn.append(figure))
    data_pictures.image_sizes({"train": Counter({(12, 10): 3})}, tmp_path / "sizes.png")
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("width in pixels (logarithmic)", "height in pixels (logarithmic)")


def test_an_image_that_cannot_be_read_is_said_and_counted_and_stops_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    train = [*samples([0, 1]), ReportSample("text", 0, b"no image"), ReportSample("cut", 1, file.getvalue()[:3000])]
    written = report(tmp_path, train, samples([0, 1], 100), ["cat", "dog"])
    unreadable = written.numbers["splits"]["train"]["unreadable"]
    assert unreadable["images"] == 2
    assert unreadable["examples"][0].startswith(
        "text: not a readable image (8 bytes): no image (it begins with b'no image'); expected one of PNG"
    )
    assert unreadable["examples"][1].startswith("cut: ")
    assert written.warnings == ["images of train that cannot be read: 2"]
    assert "not readable: train/text" in written.page.read_text()


@pytest.mark.filterwarnings("ignore:Image size")
def test_an_image_of_too_many_pixels_is_never_decoded_for_its_thumbnail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    Image.new("1", (int(MAX_PIXELS**0.5) + 1,) * 2).save(file, "PNG")
    decode = Image.Image.draft

    def draft(image: Image.Image, mode: str | None, size: tuple[int, int] | None) -> object:
        assert image.width < 1000
        return decode(image, mode, size)

    monkeypatch.setattr(Image.Image, "draft", draft)
    written = report(tmp_path, [*samples([0, 1]), ReportSample("bomb", 0, file.getvalue())], samples([0]), ["a", "b"])
    (example,) = written.numbers["splits"]["train"]["unreadable"]["examples"]
    assert "9460 x 9460 pixels; at most 89478485 are possible" in example


def test_classes_without_a_training_image_and_uneven_ones_are_said(tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(12)]
    written = report(tmp_path / "a", samples([3, 4]), samples([0], 100), names)
    assert written.warnings == ["without a training image: n0, n1, n2, n5, n6, n7, n8, n9 and 2 more"]
    written = report(tmp_path / "b", samples([0] * 11 + [1]), [], ["cat", "dog"])
    assert written.warnings[0] == "test has no image"
    assert written.warnings[1].startswith("the largest class has 11 training images, the smallest 1")


class Text(html.parser.HTMLParser):
    """What a browser would show of a page, and the tags in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.shown = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.shown += data


def test_names_and_keys_are_shown_as_they_are_and_the_page_needs_no_other_file(tmp_path: Path) -> None:
    names = ["<script>x</script>", 'a"&amp;$\\frac{', "猫 кот " * 20]
    train = [*samples([0, 1, 2]), ReportSample("<b>key</b>", 0, b"no")]
    page = Text(report(tmp_path, train, [], names).page.read_text(encoding="utf-8"))
    assert not {"script", "b"} & page.tags
    assert "<script>x</script>: 2" in page.shown
    assert "not readable: train/<b>key</b>" in page.shown
    assert len(page.sources) == 3
    assert all(source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for source in page.sources)


@pytest.mark.parametrize("classes", [1, 3, 60, 61, 555])
def test_any_number_of_classes_gives_pictures_of_bounded_size(tmp_path: Path, classes: int) -> None:
    labels = random.Random(0).choices(range(classes), k=150)
    written = report(tmp_path, samples(labels), samples(labels[:50], 150), [f"class {i}" for i in range(classes)])
    pictures = [path for path in written.files if path.suffix in (".png", ".jpg")]
    assert {path.name for path in pictures} == {"classes.png", "sizes.png", "images-train.jpg", "images-test.jpg"}
    for path in pictures:
        height, width, _ = matplotlib.image.imread(path).shape
        assert 100 < height < 2000, path
        assert 100 < width < 2000, path


@pytest.mark.parametrize("classes", [1, 3, 15, 40, 200])
def test_a_contact_sheet_shows_many_classes_evenly_whatever_the_order_of_the_samples(classes: int) -> None:
    given = samples([i % classes for i in range(400)])
    shuffled = random.Random(1).sample(given, len(given))
    names = [str(label) for label in range(classes)]
    sheets = [summarize_split("own-x", "train", names, order, Duplicates()).sheet for order in (given, shuffled)]
    chosen = [[(label, thumbnail.key) for label, thumbnail in sheet] for sheet in sheets]
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == MAX_THUMBNAILS
    per_class = [sum(label == own for own, _ in chosen[0]) for label in {label for label, _ in chosen[0]}]
    assert len(per_class) == min(classes, MAX_THUMBNAILS)
    assert max(per_class) - min(per_class) <= 1
    pixels = {sample.key: int(sample.key[1:]) for sample in given}
    for label, thumbnail in sheets[0]:
        assert pixels[thumbnail.key] % classes == label
        assert thumbnail.pixels[1, 1].tolist() == [pixels[thumbnail.key] % 256, pixels[thumbnail.key] // 256, 7]


def test_samples_are_gone_through_once_and_their_bytes_are_not_kept() -> None:
    """A megabyte an image, a hundred images: held together they would show."""
    import tracemalloc

    def large() -> Iterator[ReportSample]:
        for i in range(100):
            yield ReportSample(f"k{i}", i % 2, encoded(i) + bytes(1 << 20))

    tracemalloc.start()
    try:
        summary = summarize_split("own-x", "train", ["a", "b"], large(), Duplicates())
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert summary.num_images == 100


def test_what_cannot_be_reported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train: sample 'k0' has label 2, expected 0 to 1"):
        report(tmp_path, samples([2]), [], ["cat", "dog"])
    with pytest.raises(ValueError, match="trainval is the first two again"):
        write_data_report(tmp_path, "own-x", ["cat"], {"train": [], "trainval": []})
    with pytest.raises(ValueError, match="splits none with 1 classes"):
        write_data_report(tmp_path, "own-x", ["cat"], {})
    assert list(tmp_path.iterdir()) == []
