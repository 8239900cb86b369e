"""A reply's text in pieces, for the kinds of tokenizers that Llama 2 and 3 have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from mod_edge.plan.reply_text import REPLACEMENT, ReplyText
from mod_edge.plan.tokenizer import prepared, preset_tokenizer, text_ids
from tests.byte_fallback import CONTROL, byte_fallback_tokenizer, byte_token

LLAMA_2 = prepared(byte_fallback_tokenizer())
LLAMA_3 = preset_tokenizer(480)
METASPACE = Tokenizer(
    models.WordLevel({"▁a": 0, "▁": 1, "b": 2, "▁,": 3, "<0x41>": 4, "�": 5}, unk_token="b")
)
METASPACE.decoder = decoders.Metaspace()
SUFFIXES = Tokenizer(models.WordLevel({"a</w>": 0, "b": 1, "</w>": 2, "c</w>": 3}, unk_token="b"))
SUFFIXES.decoder = decoders.BPEDecoder()
TOKENIZERS = {
    "byte fallback": LLAMA_2,
    "byte level": LLAMA_3,
    "metaspace": METASPACE,
    "suffixes": SUFFIXES,
}
FIRST_BYTE = len(CONTROL)
BYTES = st.integers(0, 255)
SOME_BYTES = st.sampled_from([0x0A, 0x20, 0x41, 0x80, 0xC3, 0xA9, 0xE4, 0xBD, 0xF0, 0x9F, 0xFF])


def pieces_of(tokenizer, ids):
    """The pieces of the tokens, the rest at the end, and the whole text."""
    reply = ReplyText(tokenizer)
    pieces = [reply.add(token_id) for token_id in ids]
    return pieces, reply.finish(), reply.text()


def ids_of_bytes(data):
    return [FIRST_BYTE + byte for byte in data]


def ids_of(*tokens):
    """Ids of "tokens" and b"bytes" of the tokenizer with byte fallback."""
    ids = []
    for token in tokens:
        ids += ids_of_bytes(token) if isinstance(token, bytes) else [LLAMA_2.token_to_id(token)]
    assert None not in ids
    return ids


def characters_of(run):
    """The text of a run of bytes: U+FFFD for each byte that belongs to no character."""
    text = ""
    while run:
        for size in range(1, 5):
            try:
                text += run[:size].decode()
            except UnicodeDecodeError:
                continue
            run = run[size:]
            break
        else:
            text, run = text + REPLACEMENT, run[1:]
    return text


def plain_text(ids):
    """The text of tokens of the tokenizer with byte fallback, as SentencePiece would decode it."""
    text, run = "", b""
    for token_id in [*ids, None]:
        if token_id is not None and FIRST_BYTE <= token_id < FIRST_BYTE + 256:
            run += bytes([token_id - FIRST_BYTE])
            continue
        text, run = text + characters_of(run), b""
        token = None if token_id is None else LLAMA_2.id_to_token(token_id)
        if token is not None and token not in CONTROL:
            text += token.replace("▁", " ")
    return text.removeprefix(" ")


def any_ids(tokenizer):
    """Ids of all kinds, also of no token."""
    ids = st.integers(0, tokenizer.get_vocab_size() + 3)
    if tokenizer is LLAMA_2:
        ids |= (BYTES | SOME_BYTES | SOME_BYTES).map(lambda byte: FIRST_BYTE + byte)
    return st.lists(ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.data())
def test_the_pieces_of_any_tokens_joined_are_the_whole_text(name, data):
    ids = data.draw(any_ids(TOKENIZERS[name]))
    pieces, rest, text = pieces_of(TOKENIZERS[name], ids)
    assert "".join(pieces) + rest == text
    if name == "byte fallback":
        assert text == plain_text(ids)
    else:
        assert text == TOKENIZERS[name].decode(ids)


@pytest.mark.parametrize("name", ["byte fallback", "byte level"])
@given(st.text())
def test_the_pieces_of_a_text_are_the_text_and_nothing_is_left_at_the_end(name, text):
    tokenizer = TOKENIZERS[name]
    ids = text_ids(tokenizer, text)
    pieces, rest, _ = pieces_of(tokenizer, ids)
    assert "".join(pieces) + rest == text == tokenizer.decode(ids)
    assert not rest.strip(REPLACEMENT)  # a written U+FFFD waits for what follows it


@given(st.text(), st.integers(0, 3))
def test_a_text_that_ends_within_a_character_keeps_the_characters_before(text, num_cut):
    data = f"{text}🙂".encode()[: -1 - num_cut]
    pieces, rest, whole = pieces_of(LLAMA_2, ids_of("▁a", data))
    assert whole == f"a{text}" + REPLACEMENT * (3 - num_cut)
    assert "".join(pieces) + rest == whole


def test_a_character_is_given_out_when_it_is_complete():
    ids = ids_of("▁Hello", b"\n", "é🙂".encode(), "▁man")
    pieces, rest, text = pieces_of(LLAMA_2, ids)
    assert pieces == ["Hello", "\n", "", "é", "", "", "", "🙂", " man"]
    assert (rest, text) == ("", "Hello\né🙂 man")


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["▁a", b"\xc3", "b"], "a�b"),
        (["▁a", b"\xc3\xa9\xff", "b"], "aé�b"),
        (["▁a", b"\n\xf0\x9f", "▁a"], "a\n�� a"),
        ([b"\xff\xff\xff"], "���"),
        ([b"\xff", "▁a"], "� a"),
        (["▁a", b"\xe4\xe4\xbd\xa0"], "a�你"),
        (["▁a", b"\xed\xa0\x80"], "a���"),  # a surrogate
        (["▁", "▁", "▁a"], "  a"),
        ([b" ", "a"], "a"),
        (["</s>", "▁a", "<s>", "▁man"], "a man"),
    ],
)
def test_only_bytes_that_belong_to_no_character_are_replaced(tokens, text):
    pieces, rest, whole = pieces_of(LLAMA_2, ids_of(*tokens))
    assert whole == text
    assert "".join(pieces) + rest == text


@pytest.mark.parametrize("tokenizer", [METASPACE, SUFFIXES], ids=["metaspace", "suffixes"])
def test_a_token_that_reads_like_a_byte_is_text_without_byte_fallback(tokenizer):
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_tokens([byte_token(byte) for byte in range(256)])
    ids = [tokenizer.token_to_id(byte_token(byte)) for byte in b"AB"]
    pieces, rest, text = pieces_of(tokenizer, ids)
    assert "".join(pieces) + rest == text == tokenizer.decode(ids)
    assert "<0x41>" in text


def test_a_reply_without_tokens_has_no_text():
    assert pieces_of(LLAMA_2, []) == ([], "", "")


# ---- text that ends where another begins ----


def pieces_before(ends, ids):
    """The pieces before one of `ends` as they come, with the rest, and the reply's text."""
    reply = ReplyText(LLAMA_3, ends)
    pieces = []
    for token_id in ids:
        pieces.append(reply.add(token_id))
        if reply.has_ended:
            break
    return [*pieces, reply.finish()], reply


@given(st.text("abU\n "), st.sampled_from(["\nU", "a", "aab", "\n\n"]))
def test_a_reply_is_its_text_before_the_end_and_the_fewest_tokens_that_have_it(text, end):
    ids = text_ids(LLAMA_3, text)
    pieces, reply = pieces_before([end], ids)
    wanted = text.partition(end)[0]
    assert "".join(pieces) == reply.text() == wanted
    assert reply.has_ended == (end in text)
    if reply.has_ended:
        lengths = [len(LLAMA_3.decode(ids[:count])) for count in range(len(ids) + 1)]
        assert reply.num_tokens == next(n for n in range(len(ids) + 1) if lengths[n] >= len(wanted))
    else:
        assert reply.num_tokens == len(ids)


@given(st.text("abU\n ").map(list), st.lists(st.sampled_from(["a", "ba", "\nU", "aab"])))
def test_of_several_ends_the_first_that_is_complete_ends_the_reply(characters, ends):
    ids = [token_id for char in characters for token_id in text_ids(LLAMA_3, char)]
    text = "".join(characters)
    complete = [text.find(end) + len(end) for end in ends if end in text]
    told = text[: min(complete)] if complete else text
    wanted = min((told[: told.find(end)] for end in ends if end in told), key=len, default=told)
    pieces, reply = pieces_before(ends, ids)
    assert "".join(pieces) == reply.text() == wanted
    assert reply.has_ended == bool(complete)


def test_only_what_may_be_the_start_of_the_end_is_held_back():
    ids = [token_id for part in ("a", "\n", "\n", "U", "b") for token_id in text_ids(LLAMA_3, part)]
    pieces, reply = pieces_before(["\nUs"], ids)
    assert pieces == ["a", "", "\n", "", "\nUb", ""]
    assert not reply.has_ended


@given(st.lists(st.integers(0, 479)))
def test_any_tokens_end_like_their_text(ids):
    _, _, text = pieces_of(LLAMA_3, ids)
    pieces, reply = pieces_before(["e"], ids)
    assert "".join(pieces) == reply.text()
    assert reply.text().startswith(text.partition("e")[0])
