"""Entries of an official list are accepted once, with a label in range, from inside the folder."""

import os
from pathlib import Path

from pipeline.data.raw.collector import Collector
from pipeline.data.samples import Listing
from pipeline.data.shards.manifest import OWN_SPLITS


def test_every_fault_says_where_it_stands_and_none_hides_another(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in ("a.jpg", "b.jpg", "../secret.jpg"):
        (root / name).write_bytes(b"")
    os.symlink(tmp_path / "secret.jpg", root / "link.jpg")
    listing = Listing(class_names=["x", "y"])
    collector = Collector(str(root), listing, OWN_SPLITS)
    for number, (path, label) in enumerate(
        [
            ("a.jpg", 1),
            ("b.jpg", 2),
            ("none.jpg", -1),
            ("../secret.jpg", 0),
            (str(tmp_path / "secret.jpg"), 0),
            ("link.jpg", 0),
            ("a.jpg", 1),
        ]
    ):
        collector.add("train", f"list:{number}", path, label)
    collector.close()
    expected = [
        "list:1: label 2 is out of range; 2 classes: 0 to 1",
        "list:2: label -1 is out of range",
        "list:2: no file 'none.jpg'",
        "list:3: '../secret.jpg' leads out of",
        "is an absolute path; give paths relative to",
        "list:5: 'link.jpg' leads out of",
        "list:6: 'a.jpg' stands in list:0 already",
    ]
    assert len(listing.faults) == len(expected)
    for fault, part in zip(listing.faults, expected, strict=True):
        assert part in fault


def test_a_source_without_test_images_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    listing = Listing(class_names=["x"])
    collector = Collector(str(tmp_path), listing, OWN_SPLITS)
    collector.add("train", "list:1", "a.jpg", 0)
    collector.close()
    assert listing.faults == [f"test: has no image of {tmp_path}"]
