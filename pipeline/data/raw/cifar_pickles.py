"""The layout of CIFAR-100's Python version: `cifar-100-python/{train,test,meta}`, or the three files themselves.

The files are pickles, read without executing anything (`pipeline.data.raw.numpy_pickle`). `data` has 3072 bytes per
image (red, green and blue planes of 32 x 32), `fine_labels` the labels of the 100 classes, and `fine_label_names` of
meta the names of the classes.
"""

import os
from collections.abc import Sequence

import numpy as np

from pipeline.data.raw.collector import any_file
from pipeline.data.raw.numpy_pickle import RefusedPickleError, read_pickled_dict
from pipeline.data.samples import Listing, SourceSample, sample_key

_FOLDER, _SPLITS, _META = "cifar-100-python", ("train", "test"), "meta"
_SIDE = 32


def is_cifar_pickles(folder: str) -> bool:
    """Whether train or meta exists as a file (in other layouts, train is a folder); the missing one is then a fault."""
    return any(any_file(place, ("train", _META)) for place in (folder, os.path.join(folder, _FOLDER)))


def read_cifar_pickles(folder: str, splits: Sequence[str]) -> Listing:
    """Reads meta and the files of these splits; the samples hold their pixels."""
    if os.path.isdir(os.path.join(folder, _FOLDER)):
        folder = os.path.join(folder, _FOLDER)
    listing = Listing()
    names = _read(folder, _META, ["fine_label_names"], listing.faults).get("fine_label_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        listing.faults.append(f"{_META}: fine_label_names is no list of texts")
        names = []
    listing.class_names = names
    for split in _SPLITS:
        if split not in splits:
            continue
        found = _read(folder, split, ["data", "fine_labels"], listing.faults)
        if found:
            path = os.path.join(folder, split)
            listing.splits[split] = _samples(path, split, found, listing)
    return listing


def _read(folder: str, name: str, keys: list[str], faults: list[str]) -> dict[str, object]:
    """A file's values of these keys; empty, with a fault, if one of them is missing."""
    try:
        with open(os.path.join(folder, name), "rb") as file:
            found = read_pickled_dict(file)
    except FileNotFoundError:
        faults.append(f"{name}: no such file in {folder}")
        return {}
    except RefusedPickleError as error:
        faults.append(f"{name}: refused: {error}")
        return {}
    missing = [key for key in keys if key not in found]
    if missing:
        faults.append(f"{name}: has no {', '.join(missing)}")
        return {}
    return {key: found[key] for key in keys}


def _samples(path: str, split: str, found: dict[str, object], listing: Listing) -> list[SourceSample]:
    data, labels = found["data"], found["fine_labels"]
    width = 3 * _SIDE * _SIDE
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != width:
        listing.faults.append(f"{split}: data is no array of shape (images, {width})")
        return []
    if not isinstance(labels, list) or len(labels) != len(data) or not data.size:
        listing.faults.append(f"{split}: fine_labels is no list of one label for each of {len(data)} images")
        return []
    num_classes = len(listing.class_names)
    images = np.ascontiguousarray(data.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))  # NCHW -> NHWC
    samples = []
    for index, (label, pixels) in enumerate(zip(labels, images, strict=True)):
        if not isinstance(label, int) or not 0 <= label < num_classes:
            listing.faults.append(
                f"{split}: image {index}: label {label!r}; {num_classes} classes: 0 to {num_classes - 1}"
            )
            continue
        key = sample_key(split, index, listing.class_names[label])
        samples.append(SourceSample(key, path, label, pixels=pixels))
    return samples
