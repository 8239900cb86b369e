"""Read a checkpoint's tokenizer.json and check it for the streaming protocol; make new ones.

A tokenizer.json from elsewhere may truncate, pad or tokenize at random, as it did in its training,
and matches control tokens in text. `prepared` undoes all of this: what people write is text, and
the protocol's control tokens are numbers in config.json.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mod_edge.config import ModelConfig, StreamConfig
from mod_edge.errors import CheckpointError, joined_faults

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
NUM_TOKENS_SHOWN = 5


def read_tokenizer(path: Path, config: ModelConfig) -> Tokenizer:
    """The tokenizer at `path`, prepared and checked against the config's protocol and vocabulary.

    Raises:
        CheckpointError: the file cannot be read, or (all faults at once) the silent or the speak
            string is not the config's one token, a control token of the chat template is not an
            added token of the file, the text of a control token encodes to it, or a token has no
            row in the embedding.
    """
    tokenizer = load_tokenizer(path)
    stream = config.stream_config
    added = tokenizer.get_added_tokens_decoder()
    # Fine-tuning tools add them without the mark "special" too, and then text matches them.
    named = {token: tokenizer.token_to_id(token) for token in stream.chat_template.control_tokens}
    ends = (stream.eos_token_id, *stream.stop_token_ids)
    control_ids = added.keys() & {stream.bos_token_id, *ends, *named.values()}
    unmarked = [added[token_id].content for token_id in control_ids if not added[token_id].special]
    tokenizer.add_special_tokens(unmarked)
    tokenizer = prepared(tokenizer)
    faults = [
        f"no added token {token!r}, a control token of the chat template"
        for token, token_id in named.items()
        if token_id not in added
    ]
    for name, wanted in (
        ("frame_token_interval", list(stream.interval_ids)),
        ("stream_end", [stream.stream_end_id]),
    ):
        text = getattr(stream, name)
        ids = text_ids(tokenizer, text)
        if ids != wanted:
            faults.append(f"{name} {text!r} is tokens {ids}, config.json wants {wanted}")
    for token_id in sorted(control_ids):
        if token_id in text_ids(tokenizer, added[token_id].content):
            faults.append(f"the text {added[token_id].content!r} is control token {token_id}")
    faults += beyond_embedding(tokenizer, config.text_config.vocab_size)
    if faults:
        raise CheckpointError(f"{path} does not fit config.json: {'; '.join(faults)}")
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in the file at `path`, as it is there.

    Raises:
        CheckpointError: the file cannot be read as a tokenizer.json.
    """
    try:
        return Tokenizer.from_buffer(path.read_bytes())
    except Exception as exc:  # the library raises bare Exception for every fault
        raise CheckpointError(f"{path} cannot be read as a tokenizer.json: {exc}") from exc


def prepared(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer`, changed so that it encodes whole texts, always the same, and as text alone.

    Added tokens that are not special, such as runs of spaces, stay tokens of the text.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = None  # BPE dropout splits words at random
    tokenizer.encode_special_tokens = True  # a property that no tokenizer.json holds
    return tokenizer


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of `text` alone, without tokens that the tokenizer adds around a text.

    Args:
        tokenizer: prepared.
        text: without lone surrogates.
    """
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def beyond_embedding(tokenizer: Tokenizer, vocab_size: int) -> list[str]:
    """The tokens without a row among the embedding's `vocab_size`, as one fault at most.

    The number of tokens says nothing: ids may have holes, and rows may have no token.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    beyond = [(token_id, token) for token, token_id in vocabulary.items() if token_id >= vocab_size]
    if not beyond:
        return []
    tokens = [f"{token!r} is {token_id}" for token_id, token in sorted(beyond)]
    shown = joined_faults(tokens, NUM_TOKENS_SHOWN)
    return [f"vocab_size is {vocab_size}, wanted ids below it for all tokens: {shown}"]


def stream_config_of(tokenizer: Tokenizer) -> StreamConfig:
    """The streaming protocol with this module's strings and their ids in `tokenizer`."""
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    assert bos is not None
    assert eos is not None
    (interval,), (stream_end,) = (text_ids(tokenizer, text) for text in (INTERVAL, STREAM_END))
    return StreamConfig(SYSTEM_PROMPT, bos, eos, INTERVAL, interval, STREAM_END, stream_end)


def preset_tokenizer(vocab_size: int) -> Tokenizer:
    """The tokenizer of random-weight checkpoints, trained on synthetic narration sentences."""
    return tokenizer_of_corpus(_narration(), min(vocab_size, NUM_LEARNED_TOKENS), vocab_size)


def tokenizer_of_corpus(corpus: Iterable[str], num_learned: int, vocab_size: int) -> Tokenizer:
    """A prepared byte-level BPE tokenizer that splits text as Llama 3's does.

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
    return prepared(Tokenizer.from_str(json.dumps(document)))


def _narration() -> Iterator[str]:
    people = ("A man", "A woman", "A child", "Two people", "The group")
    acts = ("walks", "stops", "turns", "waits", "crosses the lawn", "leaves the picture")
    places = ("on the path", "near the lamp post", "by the road", "to the left", "to the right")
    for person, act, place in product(people, acts, places):
        yield f"\n[,]\nUser: What happens?\nAssistant: {person} {act} {place}."
    yield from (f"{SYSTEM_PROMPT}\n\n[", "]\nUser: Please narrate the video in real time.")
