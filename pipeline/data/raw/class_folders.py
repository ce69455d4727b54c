"""The layout `<split>/<class name>/<image>`: one folder per class in each split, as for torchvision's ImageFolder."""

import os
from collections.abc import Sequence

from pipeline.data.images import IMAGE_SUFFIXES
from pipeline.data.samples import Listing, Root, SourceSample, sample_key

# Files that file managers leave behind.
_IGNORED = {"thumbs.db", "desktop.ini"}


def is_class_folders(folder: str) -> bool:
    """Whether a train folder with a folder in it exists."""
    train = os.path.join(folder, "train")
    return os.path.isdir(train) and any(os.path.isdir(os.path.join(train, name)) for name in os.listdir(train))


def read_class_folders(folder: str, splits: Sequence[str]) -> Listing:
    """Reads the folders of these splits. The classes are those of train, sorted by name."""
    root = Root(folder)
    listing = Listing(class_names=subfolders(os.path.join(root.folder, "train")))
    labels = {name: label for label, name in enumerate(listing.class_names)}
    for split in splits:
        if not os.path.isdir(os.path.join(root.folder, split)):
            if split != "val":
                listing.faults.append(f"{split}/: no such folder in {folder}")
            continue
        samples: list[SourceSample] = []
        for name in subfolders(os.path.join(root.folder, split)):
            if name not in labels:
                listing.faults.append(f"{split}/{name}: train has no class of this name")
                continue
            for relative_path in images_below(root, f"{split}/{name}", listing.faults):
                try:
                    path = root.resolve(relative_path)
                except ValueError as error:
                    listing.faults.append(str(error))
                    continue
                samples.append(SourceSample(sample_key(split, len(samples), relative_path), path, labels[name]))
        if not samples:
            listing.faults.append(f"{split}/: holds no image ({', '.join(IMAGE_SUFFIXES)})")
        listing.splits[split] = samples
    return listing


def subfolders(folder: str) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return [name for name in names if os.path.isdir(os.path.join(folder, name))]


def images_below(root: Root, folder: str, faults: list[str]) -> list[str]:
    """Every image below a class's folder. Any other file is a fault, so that no image is silently left out."""
    images = []
    for where, folders, names in os.walk(os.path.join(root.folder, folder)):
        for name in folders:
            if os.path.islink(os.path.join(where, name)) and not name.startswith("."):
                relative_path = os.path.relpath(os.path.join(where, name), root.folder)
                faults.append(f"{relative_path}: a link to a folder, whose images are not read; put the folder here")
        for name in names:
            relative_path = os.path.relpath(os.path.join(where, name), root.folder)
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                images.append(relative_path)
            elif not name.startswith(".") and name.lower() not in _IGNORED:
                faults.append(f"{relative_path}: expected only images here ({', '.join(IMAGE_SUFFIXES)}); move it away")
    return sorted(images)
