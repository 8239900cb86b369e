"""JSON documents with a format version; only the current format can be read.

The manifests of a bundle, of its engines and of golden files are such documents: one object with
`format_version`, the version of its other keys.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from mod_edge.bundle.staging import write_whole
from mod_edge.errors import BundleError, ModEdgeError
from mod_edge.native.installed import install_command

Content = TypeVar("Content")

VERSION_KEY = "format_version"
# Exceptions of a content parser that assumes the document's shape.
SHAPE_ERRORS = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class VersionedJson(Generic[Content]):
    """One kind of document.

    Attributes:
        version: the current format, and the only one that can be read.
        marks: keys that documents of this kind have in every format.
        content_of: makes the content from a parsed document without its version. It may assume the
            shape: `SHAPE_ERRORS` and ModEdgeErrors are reported as a damaged document; a
            BundleError is passed on.
    """

    version: int
    marks: frozenset[str]
    content_of: Callable[[dict[str, Any]], Content]

    def is_at(self, path: Path) -> bool:
        """Whether `path` is a document of this kind, in any format."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(data, dict) and self.marks | {VERSION_KEY} <= data.keys()

    def write(self, path: Path, document: dict[str, Any]) -> None:
        """Write `document` and the version to `path`, atomically."""
        text = json.dumps({**document, VERSION_KEY: self.version}, indent=1) + "\n"
        write_whole(path, text.encode())

    def read(self, path: Path, *, advice: str) -> Content:
        """The content of the document at `path`.

        Args:
            path: the file.
            advice: what to do if it cannot be used, as the end of a message.

        Raises:
            BundleError: no file, not a JSON object, another format or another shape.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            version = data.pop(VERSION_KEY)
            if version == self.version:
                return self.content_of(data)
        except BundleError:
            raise
        except OSError as exc:
            raise BundleError(f"{path} cannot be read: {exc.strerror or exc}") from exc
        except ModEdgeError as exc:
            raise BundleError(f"{path} is damaged ({exc}); {advice}") from exc
        except SHAPE_ERRORS as exc:
            raise BundleError(f"{path} is damaged ({exc!r}); {advice}") from exc
        if isinstance(version, int) and version > self.version:
            advice = f"upgrade with: {install_command(options='-U')}; or {advice}"
        raise BundleError(
            f"{path} has format {version!r}, this mod-edge reads format {self.version}; {advice}"
        )
