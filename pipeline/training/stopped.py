"""The one exception that does not mean a failure."""


class Stopped(Exception):
    """The driver was asked to stop. The next run resumes its work."""
