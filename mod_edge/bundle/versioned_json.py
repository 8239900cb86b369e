"""JSON documents with a format version and a digest; a changed byte of one is an error.

The manifests of a bundle, of its engines and of golden files are such documents: one object with

    format_version       the version of its other keys
    sha256               of the whole file, with zeros in place of these 64 digits

Older formats can be read from `VersionedJson.oldest` on, which is the last one without a sha256.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from mod_edge.bundle.staging import write_whole
from mod_edge.document_parser import parse_json
from mod_edge.errors import BundleError, ModEdgeError
from mod_edge.native.installed import install_command

Content = TypeVar("Content")

VERSION_KEY = "format_version"
DIGEST_KEY = "sha256"
NO_DIGEST = "0" * 64
# Exceptions of a content parser that assumes the document's shape.
SHAPE_ERRORS = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class VersionedJson(Generic[Content]):
    """One kind of document.

    Attributes:
        version: the current format.
        oldest: the oldest that can be read; its documents have no digest, all later ones have.
        marks: keys that documents of this kind have in every format.
        content_of: makes the content from a parsed document without its version. It may assume the
            shape: `SHAPE_ERRORS` and ModEdgeErrors are reported as a damaged document; a
            BundleError is passed on.
    """

    version: int
    oldest: int
    marks: frozenset[str]
    content_of: Callable[[dict[str, Any]], Content]

    def is_at(self, path: Path) -> bool:
        """Whether `path` is a document of this kind, in any format."""
        try:
            data = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(data, dict) and self.marks | {VERSION_KEY} <= data.keys()

    def write(self, path: Path, document: dict[str, Any]) -> None:
        """Write `document`, the version and the digest to `path`, atomically."""
        whole = {**document, VERSION_KEY: self.version, DIGEST_KEY: NO_DIGEST}
        content = (json.dumps(whole, indent=1) + "\n").encode()
        write_whole(path, _with_digest(content, NO_DIGEST, _digest(content, NO_DIGEST)))

    def read(self, path: Path, *, advice: str) -> Content:
        """The content of the document at `path`.

        Args:
            path: the file.
            advice: what to do if it cannot be used, as the end of a message.

        Raises:
            BundleError: no file, not a JSON object, another format or shape, or changed since it
                was written.
        """
        try:
            content = path.read_bytes()
            data = parse_json(content.decode())
            version = data.pop(VERSION_KEY)
            if version in self._readable:
                digest = data.pop(DIGEST_KEY, None)
                # A digest in the oldest format: the version was changed.
                if version > self.oldest or digest is not None:
                    _check_digest(path, content, str(digest), advice)
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
            f"{path} has format {version!r}, this mod-edge reads formats "
            f"{', '.join(map(str, self._readable[:-1]))} and {self.version}; {advice}"
        )

    @property
    def _readable(self) -> tuple[int, ...]:
        return tuple(range(self.oldest, self.version + 1))


def _check_digest(path: Path, content: bytes, digest: str, advice: str) -> None:
    if _digest(content, digest) != digest:
        raise BundleError(
            f"{path} has changed since it was written (its sha256 differs); restore it, or {advice}"
        )


def _digest(content: bytes, digest: str) -> str:
    """The sha256 of a document that contains `digest`."""
    return hashlib.sha256(_with_digest(content, digest, NO_DIGEST)).hexdigest()


def _with_digest(content: bytes, digest: str, other: str) -> bytes:
    """The document with `other` in place of `digest`: its last occurrence, as the key is last."""
    before, _, after = content.rpartition(digest.encode())
    return before + other.encode() + after
