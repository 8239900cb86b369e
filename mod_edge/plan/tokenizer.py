"""Read a checkpoint's tokenizer.json and check it for the streaming protocol; make new ones."""

import json
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mod_edge.config import ModelConfig, StreamConfig
from mod_edge.errors import CheckpointError

BOS, EOS = "<|begin_of_text|>", "<|eot_id|>"
INTERVAL, STREAM_END = ",", "]\n"
SYSTEM_PROMPT = (
    "A multimodal AI assistant is helping users with some activities. Below is their "
    "conversation, interleaved with the list of video frames received by the assistant."
)
# Llama 3's splitting rule: punctuation includes the line breaks after it, so "]\n" can be one
# token; digits are split in groups of three.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NUM_LEARNED_TOKENS = 480


def read_tokenizer(path: Path, config: ModelConfig) -> Tokenizer:
    """The tokenizer at `path`, checked against the config's protocol strings and ids.

    Raises:
        CheckpointError: the file cannot be read, or (all faults at once) the silent or the speak
            string is not the config's one token, or the vocabulary is larger than the model's.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as exc:  # the library raises bare Exception for every fault
        raise CheckpointError(f"{path} cannot be read as a tokenizer.json: {exc}") from exc
    stream = config.stream_config
    faults = []
    for name in ("frame_token_interval", "stream_end"):
        text, wanted = getattr(stream, name), [getattr(stream, f"{name}_id")]
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if ids != wanted:
            faults.append(f"{name} {text!r} is tokens {ids}, config.json wants {wanted}")
    if tokenizer.get_vocab_size() > config.text_config.vocab_size:
        faults.append(
            f"it has {tokenizer.get_vocab_size()} tokens, "
            f"vocab_size is {config.text_config.vocab_size}"
        )
    if faults:
        raise CheckpointError(f"{path} does not fit config.json: {'; '.join(faults)}")
    return tokenizer


def stream_config_of(tokenizer: Tokenizer) -> StreamConfig:
    """The streaming protocol with this module's strings and their ids in `tokenizer`."""
    bos, eos, interval, stream_end = (
        tokenizer.encode(string, add_special_tokens=False).ids[0]
        for string in (BOS, EOS, INTERVAL, STREAM_END)
    )
    return StreamConfig(SYSTEM_PROMPT, bos, eos, INTERVAL, interval, STREAM_END, stream_end)


def preset_tokenizer(vocab_size: int) -> Tokenizer:
    """The tokenizer of random-weight checkpoints, trained on synthetic narration sentences."""
    return tokenizer_of_corpus(_narration(), min(vocab_size, NUM_LEARNED_TOKENS), vocab_size)


def tokenizer_of_corpus(corpus: Iterable[str], num_learned: int, vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer that splits text as Llama 3's does.

    Args:
        corpus: sentences; must include those of the streaming protocol, or its strings do not
            become single tokens.
        num_learned: most tokens to learn, bytes and special tokens included.
        vocab_size: of the tokenizer; unlearned ids become words like " <1234>", so that any output
            of a model is readable.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_learned,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    document = json.loads(tokenizer.to_str())
    vocabulary = document["model"]["vocab"]
    for token_id in range(len(vocabulary), vocab_size):
        vocabulary[f"Ġ<{token_id}>"] = token_id  # Ġ is byte-level BPE's space
    return Tokenizer.from_str(json.dumps(document))


def _narration() -> Iterator[str]:
    people = ("A man", "A woman", "A child", "Two people", "The group")
    acts = ("walks", "stops", "turns", "waits", "crosses the lawn", "leaves the picture")
    places = ("on the path", "near the lamp post", "by the road", "to the left", "to the right")
    for person, act, place in product(people, acts, places):
        yield f"\n[,]\nUser: What happens?\nAssistant: {person} {act} {place}."
    yield from (f"{SYSTEM_PROMPT}\n\n[", "]\nUser: Please narrate the video in real time.")
