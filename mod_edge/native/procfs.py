"""Sizes that Linux reports in the files of procfs."""

import re
from pathlib import Path


def sizes_in(path: Path) -> dict[str, int]:
    """The sizes in a file such as `meminfo` or `self/status`, in bytes by name.

    Empty where the system has no such file.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: 1024 * int(kib) for name, kib in lines}
