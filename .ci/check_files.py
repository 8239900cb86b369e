"""Checks staged files: none too large, text ends with one newline, TOML parses."""

import sys
from pathlib import Path

MAX_BYTES = 300_000  # the sample clip is the largest file; models and engines stay out of git

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def faults_of(path: Path) -> list[str]:
    """What is wrong with one file, in words."""
    content = path.read_bytes()
    faults = []
    if len(content) > MAX_BYTES:
        faults.append(f"{len(content)} bytes, wanted at most {MAX_BYTES}")
    is_text = b"\0" not in content
    if is_text and content and (not content.endswith(b"\n") or content.endswith(b"\n\n")):
        faults.append("wanted exactly one newline at the end")
    if path.suffix == ".toml":
        try:
            tomllib.loads(content.decode())
        except ValueError as exc:  # of bad TOML and of bad UTF-8
            faults.append(str(exc))
    return [f"{path}: {fault}" for fault in faults]


if __name__ == "__main__":
    all_faults = [fault for name in sys.argv[1:] for fault in faults_of(Path(name))]
    sys.exit("\n".join(all_faults) or 0)
