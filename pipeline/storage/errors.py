"""What goes wrong with an address or a store; callers know these from pipeline.storage.files."""

import errno
from typing import TypeGuard

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StorageError(ValueError):
    """An address that cannot be used, or a store that refused; says which and what to do."""


class PassingError(StorageError):
    """A fault that may well be over a moment later: an overloaded server, a broken connection."""


class CacheFullError(StorageError):
    """A file that the cache has no room for; one who can read it as a stream may do so instead."""


class DiskFullError(StorageError, OSError):
    """A local file that there is no room for."""

    @classmethod
    def of(cls, path: object, error: OSError) -> "DiskFullError":
        """The same fault, with the place and what to do."""
        if isinstance(error, cls):
            return error
        return cls(f"{path}: {error.strerror}; make room there, and the same command goes on")


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """Whether a write failed for want of room (or a quota, or a limit on a file's size), in any library's words."""
    return isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in _NO_ROOM)
