"""A report of a task's data, for people to read before they pay for GPUs: a page with pictures, and numbers as JSON.

The page is a single HTML file; names are escaped in it. It is written last.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.reports.data_pictures import class_histogram, contact_sheet, image_sizes
from pipeline.reports.data_summary import (
    TAGS,
    THUMBNAIL_SIDE,
    Duplicates,
    ReportSample,
    SplitSummary,
    summarize_split,
)

PAGE, NUMBERS = "data-report.html", "data-report.json"
_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg"}
_MAX_EXAMPLES = 10
_MAX_NAMED = 8
_UNEVEN = 10
"""The page warns if the largest class has more than this many times the training images of the smallest."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: right; }
td { border-bottom: 1px solid #e4e7eb; vertical-align: top; }
td:first-child, th:first-child { text-align: left; } th { border-bottom: 1px solid #7b8794; }
.warnings { background: #fdf1ea; border-left: 4px solid #d9622b; padding: .4rem 1rem; }
code { overflow-wrap: anywhere; }
img { max-width: 100%; } h2 { margin-top: 2rem; }
"""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The files that were written, and their content."""

    page: Path
    """The HTML page."""
    files: list[Path]
    """Every file of the report: the page, the numbers, the pictures."""
    numbers: dict[str, Any]
    """The content of the JSON file."""

    @property
    def warnings(self) -> list[str]:
        """Sentences that a person should read before training on this data; empty if nothing is wrong."""
        return list(self.numbers["warnings"])


def write_data_report(
    folder: Path,
    task_name: str,
    class_names: Sequence[str],
    splits: Mapping[str, Iterable[ReportSample]],
    *,
    decoding: str = "shown",
) -> Report:
    """Looks once at every image of a task and writes the report.

    Args:
        folder: Where the files go; made if need be.
        task_name: The task's full name.
        class_names: By label.
        splits: train, val and test, in that order; each is read once. trainval is left out, since it repeats train and
            val.
        decoding: How the task's recipe reads image files: one of `hst.config.DECODINGS`.

    Raises:
        ValueError: trainval is among the splits, there is no split or no class, or a label is none of the classes.
    """
    if not splits or "trainval" in splits or not class_names:
        raise ValueError(
            f"splits {', '.join(splits) or 'none'} with {len(class_names)} classes: expected train, val and test "
            f"(trainval is the first two again), and at least one class"
        )
    duplicates = Duplicates()
    summaries = {
        split: summarize_split(task_name, split, class_names, samples, duplicates, decoding=decoding)
        for split, samples in splits.items()
    }
    numbers = _numbers(task_name, class_names, summaries, duplicates, decoding)
    pictures = _draw(Path(folder), class_names, summaries)
    (Path(folder) / NUMBERS).write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = Path(folder) / PAGE
    page.write_text(_page(numbers, pictures), encoding="utf-8")
    return Report(page=page, files=[page, page.with_name(NUMBERS), *pictures.values()], numbers=numbers)


def _numbers(
    task_name: str,
    class_names: Sequence[str],
    summaries: Mapping[str, SplitSummary],
    duplicates: Duplicates,
    decoding: str,
) -> dict[str, Any]:
    shared = [
        (split, other, pairs)
        for split, other in combinations(summaries, 2)
        if (pairs := duplicates.between(split, other))
    ]
    relabelled = duplicates.with_other_labels()
    numbers: dict[str, Any] = {
        "task": task_name,
        "class_names": list(class_names),
        "decoding": decoding,
        "splits": {split: _split_numbers(summary, class_names) for split, summary in summaries.items()},
        "duplicates": {
            "between_splits": [
                {"of": other, "also_in": split, "images": len(pairs), "examples": pairs[:_MAX_EXAMPLES]}
                for split, other, pairs in shared
            ],
            "within_splits": {split: duplicates.within(split) for split in summaries},
            "repeated_in_splits": {split: duplicates.repeated(split) for split in summaries},
            "with_other_labels": {"images": len(relabelled), "examples": relabelled[:_MAX_EXAMPLES]},
        },
    }
    return numbers | {"warnings": _warnings(numbers)}


def _split_numbers(summary: SplitSummary, class_names: Sequence[str]) -> dict[str, Any]:
    counts = summary.class_counts
    smallest, largest = int(np.argmin(counts)), int(np.argmax(counts))
    return {
        "images": summary.num_images,
        "bytes": summary.num_bytes,
        "class_counts": counts,
        "smallest_class": {"name": class_names[smallest], "images": counts[smallest]},
        "largest_class": {"name": class_names[largest], "images": counts[largest]},
        "width": _range([size[0] for size in summary.sizes.elements()]),
        "height": _range([size[1] for size in summary.sizes.elements()]),
        "formats": dict(summary.formats.most_common()),
        "tags": {name: summary.tags[name] for name in TAGS},
        "constant": {"images": len(summary.constant), "examples": summary.constant[:_MAX_EXAMPLES]},
        "unreadable": {"images": len(summary.unreadable), "examples": summary.unreadable[:_MAX_EXAMPLES]},
    }


def _range(pixels: list[int]) -> dict[str, float] | None:
    if not pixels:
        return None
    return {"smallest": min(pixels), "median": float(np.median(pixels)), "largest": max(pixels)}


def _warnings(numbers: Mapping[str, Any]) -> list[str]:
    splits, duplicates, names = numbers["splits"], numbers["duplicates"], numbers["class_names"]
    warnings = [
        f"of {splits[pair['of']]['images']:,} images of {pair['of']}, {pair['images']:,} stand in {pair['also_in']} "
        f"too: what is measured on them is remembered, not recognised"
        for pair in duplicates["between_splits"]
    ]
    if count := duplicates["with_other_labels"]["images"]:
        warnings.append(f"images that stand more than once with different labels: {count:,}")
    for split, of_split in splits.items():
        if count := duplicates["repeated_in_splits"][split]:
            warnings.append(f"{split} has {count:,} image{'s' if count > 1 else ''} more than once")
        if count := of_split["unreadable"]["images"]:
            warnings.append(f"images of {split} that cannot be read: {count:,}")
        if count := of_split["constant"]["images"]:
            warnings.append(f"images of {split} that have one colour only: {count:,}")
        warnings += _tag_warnings(split, of_split["tags"], numbers["decoding"])
        if not of_split["images"]:
            warnings.append(f"{split} has no image")
    counts = splits.get("train", {}).get("class_counts", [])
    if any(counts) and (empty := [name for name, count in zip(names, counts, strict=True) if not count]):
        more = f" and {len(empty) - _MAX_NAMED} more" if len(empty) > _MAX_NAMED else ""
        warnings.append(f"without a training image: {', '.join(empty[:_MAX_NAMED])}{more}")
    elif counts and max(counts) > _UNEVEN * min(counts):
        warnings.append(
            f"the largest class has {max(counts):,} training images, the smallest {min(counts):,}: "
            f"top-1 says little of small classes"
        )
    return warnings


def _tag_warnings(split: str, tags: Mapping[str, int], decoding: str) -> list[str]:
    """What a reader of the images does not use of them."""
    ignored = ["frames"] if decoding == "shown" else ["turned", "transparent", "profile", "frames"]
    how = "" if decoding == "shown" else "; the recipe ignores it (decoding=stored)"
    return [
        f"images of {split} with {TAGS[name]}: {tags[name]:,}{how if name != 'frames' else ''}"
        for name in ignored
        if tags[name]
    ]


def _draw(folder: Path, class_names: Sequence[str], summaries: Mapping[str, SplitSummary]) -> dict[str, Path]:
    """The pictures by their titles."""
    pictures = {"Images by class": folder / "classes.png", "Image sizes": folder / "sizes.png"}
    class_histogram({s: summary.class_counts for s, summary in summaries.items()}, class_names, folder / "classes.png")
    image_sizes({split: summary.sizes for split, summary in summaries.items()}, folder / "sizes.png")
    for split, summary in summaries.items():
        if summary.sheet:
            path = pictures[f"Some images of {split}"] = folder / f"images-{split}.jpg"
            images = [(class_names[label], thumbnail.pixels) for label, thumbnail in summary.sheet]
            contact_sheet(images, path, side=THUMBNAIL_SIDE)
    return pictures


def _page(numbers: Mapping[str, Any], pictures: Mapping[str, Path]) -> str:
    title, names = html.escape(f"Data of {numbers['task']}"), numbers["class_names"]
    parts = [
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{_STYLE}</style>',
        f"<h1>{title}</h1>\n<p>{f'{len(names):,} classes' if len(names) > 1 else html.escape(names[0])}</p>",
        f'<div class="warnings">\n{_items(numbers["warnings"])}\n</div>' if numbers["warnings"] else "",
        _split_table(numbers["splits"]),
        "" if numbers["duplicates"]["between_splits"] else "<p>No image is in two splits.</p>",
        _examples(numbers),
    ]
    for name, path in pictures.items():
        source = f"data:{_MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
        parts.append(f'<h2>{html.escape(name)}</h2>\n<img alt="{html.escape(name)}" src="{source}">')
    return "\n".join(part for part in parts if part) + "\n</html>\n"


def _split_table(splits: Mapping[str, Any]) -> str:
    header = ["", "images", "bytes", "smallest class", "largest class", "width", "height", "formats", "tags"]
    rows = []
    for split, of_split in splits.items():
        classes = [of_split["smallest_class"], of_split["largest_class"]]
        rows.append(
            [
                split,
                f"{of_split['images']:,}",
                f"{of_split['bytes'] / 1e6:,.1f} MB"
                if of_split["bytes"] >= 1e6
                else f"{of_split['bytes'] / 1e3:,.1f} kB",
                *(f"{one['name']}: {one['images']:,}" for one in classes),
                *(_span(of_split[side]) for side in ("width", "height")),
                _counts(of_split["formats"]),
                _counts({name: count for name, count in of_split["tags"].items() if count}) or "none",
            ]
        )
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    head = "".join(f"<th>{name}</th>" for name in header)
    return "<table>\n" + "\n".join(f"<tr>{line}</tr>" for line in (head, *lines)) + "\n</table>"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items())


def _span(pixels: Mapping[str, float] | None) -> str:
    if pixels is None:
        return "-"
    if pixels["smallest"] == pixels["largest"]:
        return f"{pixels['smallest']:,}"
    return f"{pixels['smallest']:,} to {pixels['largest']:,}, median {pixels['median']:,.0f}"


def _examples(numbers: Mapping[str, Any]) -> str:
    """Keys of images that are twice there or cannot be read, so that they can be found."""
    found = [
        f"{pair['of']}/{key} is {pair['also_in']}/{there}"
        for pair in numbers["duplicates"]["between_splits"]
        for there, key in pair["examples"]
    ]
    found += [f"different labels: {' = '.join(g)}" for g in numbers["duplicates"]["with_other_labels"]["examples"]]
    for split, of_split in numbers["splits"].items():
        found += [f"not readable: {split}/{text}" for text in of_split["unreadable"]["examples"]]
        found += [f"one colour only: {split}/{key}" for key in of_split["constant"]["examples"]]
    return f"<h2>Images to look at</h2>\n{_items(found, code=True)}" if found else ""


def _items(texts: Sequence[str], *, code: bool = False) -> str:
    start, end = ("<code>", "</code>") if code else ("", "")
    return "<ul>\n" + "\n".join(f"<li>{start}{html.escape(text)}{end}</li>" for text in texts) + "\n</ul>"
