"""The tokenizer of a Hugging Face folder, as the tokenizer.json that a checkpoint holds.

A folder without tokenizer.json has the files of an older library. transformers converts them; what
it makes of a SentencePiece model is compared with the sentencepiece library on `EXACT_TEXTS`, and
an inexact one is refused.

Dummy spaces. Tokenizers of SentencePiece's kind put a space, "▁", before a text. The protocol
encodes the text between two control tokens or frames at a time. One that prepends it to each such
text in a whole conversation, as Llama 2's does, is kept. One that does so only where the
conversation begins is stored without: in mid-stream it would add spaces that no training text has.
"""

import json
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers

from mod_edge.errors import CheckpointError, joined_faults
from mod_edge.model.checkpoint_folder import require_files
from mod_edge.plan.tokenizer import beyond_embedding, load_tokenizer, prepared, text_ids

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
# The files of a tokenizer without tokenizer.json, and the packages that convert them.
CONVERTED_FILES = {
    (SENTENCEPIECE_FILE,): ("transformers", "sentencepiece"),
    ("vocab.json", "merges.txt"): ("transformers",),
}
TIKTOKEN_SUFFIX = "tiktoken"
# Spaces at both ends and in runs, line breaks, the protocol's brackets, characters of several
# bytes and of several code points, numbers, the names of byte tokens, SentencePiece's own space.
EXACT_TEXTS = (
    *("", " ", "   ", "\n", "\t", "\n\n[", "]\nUser: What?\nAssistant: It stops.", "[,,,]"),
    *("Hello world", " Hello", "Hello ", "  two  spaces  ", "a\n b", "don't", "x = 10**-7;"),
    *(
        "Grüße, naïve café",
        "e\u0301",
        "東京タワー",
        "Привет",
        "مرحبا",
        "🙂",
        "👩‍👩‍👧 🇫🇷",
        "\u00a0\u2003",
    ),
    *("1234567", "<0x41>", "▁a ▁", "\ufeff", "ﬁ ½ Å"),
)
NUM_TEXTS_SHOWN = 3
BY_HAND = "load it with the library that made it, save it as tokenizer.json and put that beside it"


def imported_tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """The folder's tokenizer, prepared.

    Special tokens beyond the embedding, such as VideoLLM-online's "<v>", are left out: no protocol
    of mod-edge feeds them.

    Args:
        folder: of a Hugging Face model.
        config: its config.json, parsed.

    Raises:
        CheckpointError: there is no tokenizer, it cannot be read or converted exactly, a package
            that converts it is missing, or other tokens have no row in the embedding.
    """
    path = folder / TOKENIZER_FILE
    if path.is_file():
        require_files(folder, [path])
        tokenizer = load_tokenizer(path)
    else:
        tokenizer = _converted(folder)
    document = json.loads(tokenizer.to_str())
    vocab_size = config.get("vocab_size")
    is_changed = _without_dummy_space_at_the_start(document)
    if isinstance(vocab_size, int):
        is_changed |= _without_special_tokens_beyond(document, vocab_size)
    if is_changed:
        tokenizer = Tokenizer.from_str(json.dumps(document))
    if isinstance(vocab_size, int) and (faults := beyond_embedding(tokenizer, vocab_size)):
        raise CheckpointError(
            f"the tokenizer of {folder} is larger than the model's embedding: {faults[0]}; take "
            "the tokenizer that was published with these weights"
        )
    return prepared(tokenizer)


def _without_special_tokens_beyond(document: dict[str, Any], vocab_size: int) -> bool:
    """Remove special added tokens without a row; returns whether there were any."""
    added = document["added_tokens"]
    beyond = [token for token in added if token["special"] and token["id"] >= vocab_size]
    document["added_tokens"] = [token for token in added if token not in beyond]
    vocabulary = document["model"]["vocab"]
    for token in beyond:
        if isinstance(vocabulary, dict):
            vocabulary.pop(token["content"], None)
    return bool(beyond)


def _without_dummy_space_at_the_start(document: dict[str, Any]) -> bool:
    """Remove a dummy space that only a conversation's first text has; returns whether it had."""
    firsts = [
        step
        for step in _steps(document["pre_tokenizer"], "pretokenizers")
        if step["type"] == "Metaspace" and step["prepend_scheme"] == "first"
    ]
    if not firsts:
        return False
    for step in firsts:
        step["prepend_scheme"] = "never"
    decoder = document["decoder"]
    for step in _steps(decoder, "decoders"):
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
    if decoder and decoder["type"] == "Sequence":  # without the step that takes it off again
        strips_one = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        decoder["decoders"] = [step for step in decoder["decoders"] if step != strips_one]
    return True


def _steps(part: dict[str, Any] | None, name: str) -> Iterator[dict[str, Any]]:
    """The steps of a part of tokenizer.json, which may be one or a sequence in the field `name`."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for step in part[name]:
        yield from _steps(step, name)


def _converted(folder: Path) -> Tokenizer:
    """The tokenizer that the libraries make of the folder's older files."""
    names = next(
        (names for names in CONVERTED_FILES if all((folder / name).is_file() for name in names)),
        None,
    )
    if names is None:
        raise CheckpointError(_no_tokenizer(folder))
    packages = CONVERTED_FILES[names]
    if missing := [name for name in packages if find_spec(name) is None]:
        raise CheckpointError(
            f"{folder} has no {TOKENIZER_FILE}; making one of {' and '.join(names)} needs "
            f"{' and '.join(packages)}, which mod-edge does not install: pip install "
            f"{' '.join(missing)}"
        )
    tokenizer = _converted_by_transformers(folder, " and ".join(names))
    if SENTENCEPIECE_FILE in names:
        tokenizer = _exact(tokenizer, folder / SENTENCEPIECE_FILE)
    return tokenizer


def _no_tokenizer(folder: Path) -> str:
    wanted = f"{TOKENIZER_FILE}, {', or '.join(' and '.join(names) for names in CONVERTED_FILES)}"
    found = sorted(path.name for path in folder.iterdir() if TIKTOKEN_SUFFIX in path.name)
    if found:
        return (
            f"{folder} has {found[0]} alone for a tokenizer, wanted {wanted}: a tiktoken file does "
            f"not say how text is split, so it cannot be converted exactly; {BY_HAND}"
        )
    return f"{folder} has no tokenizer, wanted {wanted}; download the folder again with all files"


def _converted_by_transformers(folder: Path, names: str) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        return Tokenizer.from_str(library.backend_tokenizer.to_str())
    except Exception as exc:  # the libraries raise many kinds for files that they cannot convert
        raise CheckpointError(
            f"{folder}: transformers cannot convert {names}: {exc}; {BY_HAND}"
        ) from exc


def _exact(tokenizer: Tokenizer, path: Path) -> Tokenizer:
    """`tokenizer`, or a variant with another dummy space, that equals the SentencePiece model."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(path))
    wanted = {text: processor.encode(text) for text in EXACT_TEXTS}
    faults = _differences(tokenizer, wanted)
    if faults:
        # transformers 5 converts with Metaspace, which adds no dummy space to a text that begins
        # with a space. SentencePiece does.
        spaces = [normalizers.Replace(" ", "▁")]
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces])
        faults = _differences(tokenizer, wanted)
    if faults:
        raise CheckpointError(
            f"{path}: the tokenizer that transformers makes of it differs from SentencePiece on "
            f"{len(faults)} of {len(EXACT_TEXTS)} texts: {joined_faults(faults, NUM_TEXTS_SHOWN)}; "
            f"{BY_HAND}"
        )
    return tokenizer


def _differences(tokenizer: Tokenizer, wanted: dict[str, list[int]]) -> list[str]:
    return [
        f"{text!r} is {ours}, wanted {ids}"
        for text, ids in wanted.items()
        if (ours := text_ids(tokenizer, text)) != ids
    ]
