"""The one exception that is no failure."""


class Stopped(Exception):
    """The driver was told to stop; run again, it goes on."""
