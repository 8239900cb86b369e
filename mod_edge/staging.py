"""Folders that appear whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mod_edge.errors import ConfigError


@contextmanager
def staged_folder(target: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends without error.

    Whatever ends the block early, Ctrl-C included, removes the temporary folder and leaves `target`
    as it was; what ends the exchange itself brings `target` back.

    Args:
        target: the folder to make.
        force: replace what is there already.

    Raises:
        ConfigError: `target` exists and `force` is not given.
    """
    if target.exists() and not force:
        raise ConfigError(f"{target} exists already; use --force to replace it, or another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    content, replaced = staging / "new", staging / "old"
    try:
        content.mkdir()
        yield content
        if target.exists():
            target.rename(replaced)
        content.rename(target)
    finally:
        if replaced.exists() and not target.exists():
            replaced.rename(target)  # ended between the two renames
        shutil.rmtree(staging, ignore_errors=True)
