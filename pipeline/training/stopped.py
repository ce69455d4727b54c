"""The one exception that does not mean a failure."""


class Stopped(Exception):
    """The driver was told to stop. The next run resumes its work."""
