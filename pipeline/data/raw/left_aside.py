"""The rule for folders and files that systems and programs leave among people's images: they are no samples.

- A leading dot hides a name: `.ipynb_checkpoints` has copies of images, `.thumbnails` small ones, `.Trash-1000` what
  was thrown away, and `._photo.jpg` is what macOS writes beside `photo.jpg` on other file systems.
- Others are known by name, in any case. `@eaDir` (Synology), `@Recycle` (QNAP), `$RECYCLE.BIN` (Windows), `__MACOSX`
  (zips of macOS) and their like hold thumbnails, copies and thrown-away files.

A copy of an image would stand in train and test, so what is left aside is never a sample. It is counted, and people are
told, in case they gave a class such a name.
"""

from collections.abc import Mapping, Sequence

from pipeline.data.errors import few

_KNOWN = {
    "@eadir",
    "@tmp",
    "@recycle",
    "@recently-snapshot",
    "#recycle",
    "#snapshot",
    "__macosx",
    "$recycle.bin",
    "recycler",
    "system volume information",
    "lost+found",
    "network trash folder",
    "temporary items",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
}
HIDDEN = "hidden, or a system's own"
"""Why names by this rule are left aside: a key of `Listing.left_aside`."""


def is_hidden(name: str) -> bool:
    """Whether a folder or file of this name is left aside with all that is in it."""
    return name.startswith(".") or name.lower() in _KNOWN


def left_aside_notes(left_aside: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for each reason, with its number of folders and files and a few of them."""
    return [f"left aside, as {reason}: {len(names):,} ({few(names)})" for reason, names in left_aside.items()]
