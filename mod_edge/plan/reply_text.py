"""A reply's text, piece by piece, from its token ids.

The library's `DecodeStream` cannot do this for tokenizers with byte fallback (Llama 2): its decoder
replaces a whole run of byte tokens when one byte of it is wrong, also characters that it returned
before, which `DecodeStream` reports as an "Invalid prefix". Here, as in SentencePiece,
U+FFFD replaces only the bytes that belong to no character. Valid text is the library's.
"""

import codecs

from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class ReplyText:
    """The text of one reply: its pieces, joined, are `text()`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """The text of a reply without tokens."""
        self._tokenizer = tokenizer
        self._byte_ids = _byte_ids(tokenizer)
        self._byte_of = {token_id: byte for byte, token_id in enumerate(self._byte_ids)}
        self._held = bytearray()  # the start of a character, from byte tokens
        self._ids: list[int] = []  # with U+FFFD's bytes in place of wrong ones
        # The text of ids[first:end] was returned and precedes the next piece: some decoders strip
        # a space at the start of what they are given.
        self._first = self._end = 0

    def add(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        if token_id in self._byte_of:
            self._held.append(self._byte_of[token_id])
            self._take_characters(is_end=False)
        else:
            self._take_characters(is_end=True)
            self._ids.append(token_id)
        piece = self._next_piece()
        # The rest of a character may follow, with decoders of bytes without byte tokens.
        return "" if piece.endswith(REPLACEMENT) else self._given(piece)

    def finish(self) -> str:
        """The rest after the last token: U+FFFD for each part of an incomplete character."""
        self._take_characters(is_end=True)
        return self._given(self._next_piece())

    def text(self) -> str:
        """The whole text, once it is finished."""
        return self._decode(0, len(self._ids))

    def _take_characters(self, *, is_end: bool) -> None:
        """Move the held bytes to the ids, unless they can still become a character."""
        while self._held:
            try:
                # Only the first byte can be wrong: the bytes before the newest start a character.
                text, num_bytes = codecs.utf_8_decode(self._held, "strict", is_end)
            except UnicodeDecodeError:
                text, num_bytes = REPLACEMENT, 1
            if num_bytes == 0:
                return
            del self._held[:num_bytes]
            self._ids += [self._byte_ids[byte] for byte in text.encode()]

    def _next_piece(self) -> str:
        before = self._decode(self._first, self._end)
        return self._decode(self._first, len(self._ids))[len(before) :]

    def _given(self, piece: str) -> str:
        if piece:
            self._first, self._end = self._end, len(self._ids)
        return piece

    def _decode(self, first: int, end: int) -> str:
        text: str = self._tokenizer.decode(self._ids[first:end], skip_special_tokens=True)
        return text


def _byte_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids of the 256 byte tokens; empty if the tokenizer has no byte fallback."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    ids = [token_id for token in tokens if (token_id := tokenizer.token_to_id(token)) is not None]
    if len(ids) < len(tokens):
        return []
    # Without byte fallback in its decoder, a tokenizer may have these as ordinary tokens.
    is_text = tokenizer.decode(ids[:1], skip_special_tokens=False) == tokens[0]
    return [] if is_text else ids
