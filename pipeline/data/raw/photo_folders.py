"""The layout `<class name>/<image>`: a folder of photos sorted by class, with no splits. A fifth becomes the test.

Each class draws by the seed and its images' paths: photos that are added to one class leave the others as they were,
and move few of its own.
"""

import os
from collections.abc import Sequence

from hst.randomness import derive_seed
from pipeline.data.raw.class_folders import IMAGE_SUFFIXES, images_below, subfolders
from pipeline.data.samples import Listing, Root, SourceSample, sample_key

# A folder of one of these names is a split and no class: then this is another layout, or a part of one.
_SPLIT_NAMES = {"train", "val", "test", "trainval", "validation"}
_TEST_SHARE = 5


def is_photo_folders(folder: str) -> bool:
    """Whether there are folders, none of them named like a split."""
    names = subfolders(folder)
    return bool(names) and not _SPLIT_NAMES & {name.lower() for name in names}


def read_photo_folders(folder: str, task: str, seed: int, splits: Sequence[str]) -> Listing:
    """Reads the folders of one task into train and test; the classes are in the order of their names.

    Without test in `splits`, the photos that would be the test are not looked at; their names have to be there,
    since the fifth is drawn among all names.

    Args:
        folder: Holds a folder for each class.
        task: Its name, and
        seed: choose the fifth of each class (at least one image) that becomes the test.
        splits: train, and test or not.
    """
    root = Root(folder)
    listing = Listing(class_names=subfolders(root.folder))
    listing.splits = {split: [] for split in ("train", "test") if split in splits}
    listing.test_origin = f"a stratified fifth of all images, seed {seed}"
    for name in sorted(os.listdir(root.folder)):
        if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
            listing.faults.append(f"{name}: an image beside the classes' folders; put it into its class's folder")
    count = 0
    for label, name in enumerate(listing.class_names):
        images = images_below(root, name, listing.faults)
        if len(images) < 2:
            listing.faults.append(f"{name}/: {len(images)} image(s); a class needs at least 2, one for the test")
        drawn = sorted(images, key=lambda image: derive_seed(seed, task, "test", image))
        test = set(drawn[: max(1, round(len(images) / _TEST_SHARE))])
        for image in images:
            split = "test" if image in test else "train"
            if split in listing.splits:
                try:
                    path = root.resolve(image)
                    listing.splits[split].append(SourceSample(sample_key("photo", count, image), path, label))
                except ValueError as error:
                    listing.faults.append(str(error))
            count += 1
    return listing
