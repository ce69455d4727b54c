"""The layout `<class name>/<image>`: photos sorted by class, without splits. A fifth of them becomes the test split.

The draw for each class depends on the seed and on the paths of its images. Photos added to one class do not change the
split of the others and change few images of their own class.
"""

from collections.abc import Sequence

from hst.randomness import derive_seed
from pipeline.data.raw.class_folders import class_folders, images_below, subfolders
from pipeline.data.samples import Listing, Root, SourceSample, sample_key
from pipeline.tasks.class_names import alike_faults

# A folder with one of these names is a split, not a class: the data has another layout or part of one.
_SPLIT_NAMES = {"train", "val", "test", "trainval", "validation"}
_TEST_SHARE = 5


def is_photo_folders(folder: str) -> bool:
    """Whether there are folders and none is named like a split."""
    names = subfolders(folder)
    return bool(names) and not _SPLIT_NAMES & {name.lower() for name in names}


def read_photo_folders(folder: str, task: str, seed: int, splits: Sequence[str]) -> Listing:
    """Reads the folders of one task into train and test; the classes are sorted by name.

    If `splits` lacks test, the photos of test are not looked at. Their names must exist, however, because the fifth is
    drawn among all names.

    Args:
        folder: Folder with one folder per class.
        task: Name of the task; with the seed, it determines which fifth of each class becomes test.
        seed: Seed of the draw. At least one image per class becomes test.
        splits: train, with or without test.
    """
    root = Root(folder)
    listing = Listing()
    folders = class_folders(root, "", listing)
    listing.faults += alike_faults((folder_name, folder_name) for folder_name in folders.values())
    listing.class_names = list(folders)
    listing.splits = {split: [] for split in ("train", "test") if split in splits}
    listing.test_origin = f"a stratified fifth of all images, seed {seed}"
    count = 0
    for label, folder_name in enumerate(folders.values()):
        images = images_below(root, folder_name, listing)
        if len(images) < 2:
            listing.faults.append(f"{folder_name}/: {len(images)} image(s); a class needs at least 2, one for the test")
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
