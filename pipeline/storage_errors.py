"""What goes wrong with an address or a store; callers know these from pipeline.storage."""


class StorageError(ValueError):
    """An address that cannot be used, or a store that refused; says which and what to do."""


class PassingError(StorageError):
    """A fault that may well be over a moment later: an overloaded server, a broken connection."""


class CacheFullError(StorageError):
    """A file that the cache has no room for; one who can read it as a stream may do so instead."""
