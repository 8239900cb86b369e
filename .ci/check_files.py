"""Checks staged files: none too large, text ends with one newline, TOML parses."""

import sys
from pathlib import Path

MAX_BYTES = 300_000  # the sample clip is below it; engines and other models stay out of git
LARGER_FOLDERS = {  # what mod-edge wrote and comes along
    Path("mod_edge/narrator"): 10_000_000,
    Path("docs/results"): 1_000_000,
}

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def faults_of(path: Path) -> list[str]:
    """What is wrong with one file, in words."""
    content = path.read_bytes()
    faults = []
    allowed = [size for folder, size in LARGER_FOLDERS.items() if folder in path.parents]
    max_bytes = max(allowed, default=MAX_BYTES)
    if len(content) > max_bytes:
        faults.append(f"{len(content)} bytes, wanted at most {max_bytes}")
    is_text = b"\0" not in content and path.name != "tokenizer.json"  # which has no newline
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
