"""Errors of addresses and stores. Callers import them from pipeline.storage.files."""

import errno
from typing import TypeGuard

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StorageError(ValueError):
    """An address that cannot be used, or a store that refused a request. The message says which and what to do."""


class PassingError(StorageError):
    """A temporary failure that is worth a retry: an overloaded server, a broken connection."""


class CacheFullError(StorageError):
    """The cache has no room for a file. The caller may read it as a stream instead."""


class DiskFullError(StorageError, OSError):
    """The local disk has no room for a file."""

    @classmethod
    def of(cls, path: object, error: OSError) -> "DiskFullError":
        """The same error with the path and what to do about it."""
        if isinstance(error, cls):
            return error
        return cls(f"{path}: {error.strerror}; make room there, and the same command goes on")


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """Whether a write failed because of a full disk, a quota or a limit on the file size."""
    return isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in _NO_ROOM)
