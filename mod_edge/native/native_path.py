"""Paths for libraries written in C++, which take names in UTF-8 only."""

from pathlib import Path

from mod_edge.errors import ConfigError
from mod_edge.unicode_text import lone_surrogate


def native_path(path: Path) -> str:
    """`path` as a string that OpenCV, ONNX, ONNX Runtime and TensorRT can open.

    On Linux a name may hold any bytes. Python keeps those that are not UTF-8 as lone surrogates; at
    one of them OpenCV crashes the process, and the others raise a TypeError about their arguments.

    Raises:
        ConfigError: the path is not UTF-8.
    """
    if not is_utf8(path):
        raise ConfigError(
            f"the path {str(path)!a} is not UTF-8, so the libraries that need it cannot open it; "
            "rename the file or folder"
        )
    return str(path)


def is_utf8(path: str | Path) -> bool:
    """Whether a path or address has no bytes that are not UTF-8."""
    return lone_surrogate(str(path)) is None
