"""The layout `<split>/<class name>/<image>`: one folder per class in each split, as for torchvision's ImageFolder."""

import os
from collections.abc import Sequence

from pipeline.data.images import IMAGE_SUFFIXES
from pipeline.data.raw.left_aside import HIDDEN, is_hidden
from pipeline.data.samples import Listing, Root, SourceSample, sample_key
from pipeline.tasks.class_names import alike_faults, class_name, repeated_faults


def is_class_folders(folder: str) -> bool:
    """Whether a train folder with a folder in it exists."""
    train = os.path.join(folder, "train")
    return os.path.isdir(train) and bool(subfolders(train))


def read_class_folders(folder: str, splits: Sequence[str]) -> Listing:
    """Reads the folders of these splits. The classes are those of train, sorted by name."""
    root = Root(folder)
    listing = Listing()
    there = [split for split in ("train", *splits) if os.path.isdir(os.path.join(root.folder, split))]
    folders = {split: class_folders(root, split, listing) for split in dict.fromkeys(there)}
    listing.faults += alike_faults((path, os.path.basename(path)) for of in folders.values() for path in of.values())
    listing.class_names = list(folders["train"])
    labels = {name: label for label, name in enumerate(listing.class_names)}
    for split in splits:
        if split not in folders:
            if split != "val":
                listing.faults.append(f"{split}/: no such folder in {folder}")
            continue
        samples: list[SourceSample] = []
        for name, class_folder in folders[split].items():
            if name not in labels:
                listing.faults.append(f"{class_folder}: train has no class of this name")
                continue
            for relative_path in images_below(root, class_folder, listing):
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
    """Names of the folders in a folder, sorted, without those that are left aside."""
    names = sorted(name for name in os.listdir(folder) if not is_hidden(name))
    return [name for name in names if os.path.isdir(os.path.join(folder, name))]


def class_folders(root: Root, folder: str, listing: Listing) -> dict[str, str]:
    """The folders of classes in a folder: each class's name and its folder's path below the root, sorted by name.

    Two folders of one class are a fault, and so is an image beside the folders.
    """
    found: list[tuple[str, str]] = []
    for name in sorted(os.listdir(os.path.join(root.folder, folder))):
        path = os.path.join(folder, name)
        is_folder = os.path.isdir(os.path.join(root.folder, path))
        if is_hidden(name):
            listing.leave_aside(HIDDEN, f"{path}/" if is_folder else path)
        elif is_folder:
            found.append((path, name))
        elif name.lower().endswith(IMAGE_SUFFIXES):
            listing.faults.append(f"{path}: an image beside the classes' folders; put it into its class's folder")
    listing.faults += repeated_faults(found)
    return dict(sorted((class_name(name), path) for path, name in found))


def images_below(root: Root, folder: str, listing: Listing) -> list[str]:
    """Every image below a class's folder. Any other file is a fault, so that no image is silently left out."""
    images = []

    def unreadable(error: OSError) -> None:
        listing.faults.append(f"{error.filename}: cannot be read ({error.strerror})")

    for where, folders, names in os.walk(os.path.join(root.folder, folder), onerror=unreadable):
        place = os.path.relpath(where, root.folder)
        for name in [name for name in folders if is_hidden(name)]:
            listing.leave_aside(HIDDEN, f"{os.path.join(place, name)}/")
            folders.remove(name)  # os.walk does not enter it
        for name in folders:
            if os.path.islink(os.path.join(where, name)):
                listing.faults.append(
                    f"{os.path.join(place, name)}: a link to a folder, whose images are not read; put the folder here"
                )
        for name in names:
            relative_path = os.path.join(place, name)
            if is_hidden(name):
                listing.leave_aside(HIDDEN, relative_path)
            elif name.lower().endswith(IMAGE_SUFFIXES):
                images.append(relative_path)
            else:
                listing.faults.append(
                    f"{relative_path}: expected only images here ({', '.join(IMAGE_SUFFIXES)}); move it away"
                )
    return sorted(images)
