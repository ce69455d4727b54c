"""Shows names that come from other people: of files, classes, tags."""


def printable(text: str) -> str:
    """A text without characters that could steer a terminal, or that no terminal can write.

    The latter stand for bytes in a file's name that are not UTF-8.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
