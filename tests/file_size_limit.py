"""A stand-in for a full disk that native libraries and child processes meet too."""

import resource
from contextlib import contextmanager


@contextmanager
def file_size_limit(limit_bytes):
    """Writes beyond the limit fail; Python ignores the signal that would end the process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
