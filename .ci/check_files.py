"""Checks staged files: size, one newline at the end of text, valid TOML."""

import sys
from pathlib import Path

MAX_BYTES = 300_000  # fits the sample clip; no engines or other models in git
LARGER_FOLDERS = {  # bundled outputs of mod-edge
    Path("mod_edge/narrator"): 10_000_000,
    Path("docs/results"): 1_000_000,
}

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def faults_of(path: Path) -> list[str]:
    """The faults of one file, one sentence each."""
    content = path.read_bytes()
    faults = []
    allowed = [size for folder, size in LARGER_FOLDERS.items() if folder in path.parents]
    max_bytes = max(allowed, default=MAX_BYTES)
    if len(content) > max_bytes:
        faults.append(f"{len(content)} bytes, wanted at most {max_bytes}")
    is_text = b"\0" not in content and path.name != "tokenizer.json"  # written without one
    if is_text and content and (not content.endswith(b"\n") or content.endswith(b"\n\n")):
        faults.append("wanted exactly one newline at the end")
    if path.suffix == ".toml":
        try:
            tomllib.loads(content.decode())
        except ValueError as exc:  # bad TOML or bad UTF-8
            faults.append(str(exc))
    return [f"{path}: {fault}" for fault in faults]


if __name__ == "__main__":
    all_faults = [fault for name in sys.argv[1:] for fault in faults_of(Path(name))]
    sys.exit("\n".join(all_faults) or 0)
