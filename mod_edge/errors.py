"""All errors that mod-edge raises on purpose.

    ModEdgeError
    |-- ConfigError        a setting or a config.json value is not allowed
    |   `-- NotStreamingError  a question to a stream that has not begun, or has ended
    |-- CheckpointError    the checkpoint folder is incomplete or damaged
    |-- ShapeError         an array has the wrong shape, dtype or number of rows
    |-- ExportError        a graph could not be written, or differs from the reference
    |-- BundleError        a bundle is missing, damaged, of a newer format or unsafe
    |-- BackendError       an inference backend cannot run here
    |-- CacheError         a step does not fit in the KV cache
    |-- SourceError        a video or camera cannot be read
    `-- DataError          a data set or a training recipe is missing or faulty

Each message says what is wrong, what was found, what was wanted and what to do. The command line
prints it without a traceback and exits with 1, or with 2 if a command's options are at fault; a
traceback always means a bug in mod-edge.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

MAX_SHOWN = 200  # characters of a value in a message: two lines of a terminal


class ModEdgeError(Exception):
    """Base class of all errors that a user can fix; any other exception is a bug."""


class ConfigError(ModEdgeError):
    """A setting contradicts another, is out of range, or is unknown."""


class NotStreamingError(ConfigError):
    """A question came before its stream has begun, or after its end."""


class CheckpointError(ModEdgeError):
    """A checkpoint lacks tensors, has misshapen ones, or cannot be read."""


class ShapeError(ModEdgeError):
    """An array has the wrong shape, dtype or number of rows."""


class ExportError(ModEdgeError):
    """An exported graph has the wrong ops, dims or numbers."""


class BundleError(ModEdgeError):
    """A bundle is missing, damaged, of another format, or points outside its folder."""


class BackendError(ModEdgeError):
    """The backend asked for cannot run on this machine."""


class CacheError(ModEdgeError):
    """A step does not fit in the KV cache window."""


class SourceError(ModEdgeError):
    """A video file, stream or camera cannot be opened, or stopped delivering frames."""


class DataError(ModEdgeError):
    """A data set or a training recipe is missing or faulty."""


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """The nearest known name, as " (did you mean 'x'?)", or "" if none is near."""
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def shortened(value: object) -> str:
    """The value as Python writes it, without its middle if it would fill a message."""
    text = repr(value)
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[: MAX_SHOWN // 2]}...{text[-MAX_SHOWN // 2 :]}"


def joined_faults(faults: Sequence[str], most: int) -> str:
    """The first `most` faults, joined for a message, and the number of the others."""
    more = len(faults) - most
    return "; ".join(faults[:most]) + (f"; and {more} more" if more > 0 else "")
