"""A reply's text, piece by piece, from its token ids.

The library's `DecodeStream` cannot do this for tokenizers with byte fallback (Llama 2): its decoder
replaces a whole run of byte tokens when one byte of it is wrong, also characters that it returned
before, which `DecodeStream` reports as an "Invalid prefix". Here, as in SentencePiece,
U+FFFD replaces only the bytes that belong to no character. Valid text is the library's.
"""

import codecs
from bisect import bisect_left
from collections.abc import Sequence

from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class ReplyText:
    """The text of one reply: its pieces, joined, are `text()`."""

    def __init__(self, tokenizer: Tokenizer, ends: Sequence[str] = ()) -> None:
        """The text of a reply without tokens.

        Args:
            tokenizer: the model's.
            ends: texts before which the reply ends, at the first that is complete; what may be the
                start of one is held back. Without one, only tokens end it.
        """
        self._tokenizer = tokenizer
        self._ends = ends
        self._held_text = ""  # the start of an end, perhaps
        self._lengths: list[int] = []  # of the text up to each token, what was held included
        self._length: int | None = None  # of the text before the end
        self._byte_ids = _byte_ids(tokenizer)
        self._byte_of = {token_id: byte for byte, token_id in enumerate(self._byte_ids)}
        self._held = bytearray()  # the start of a character, from byte tokens
        self._ids: list[int] = []  # with U+FFFD's bytes in place of wrong ones
        # The text of ids[first:end] was returned and precedes the next piece: some decoders strip
        # a space at the start of what they are given.
        self._first = self._end = 0

    @property
    def has_ended(self) -> bool:
        """Whether one of `ends` was found; nothing may be added then."""
        return self._length is not None

    @property
    def num_tokens(self) -> int:
        """The first tokens that have all of the text."""
        if self._length is None:
            return len(self._lengths)
        return bisect_left(self._lengths, self._length) + 1 if self._length else 0

    def add(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete or held."""
        piece = self._piece(token_id)
        self._lengths.append((self._lengths[-1] if self._lengths else 0) + len(piece))
        return self._before_end(piece) if self._ends else piece

    def finish(self) -> str:
        """The rest after the last token: U+FFFD for each part of an incomplete character."""
        if self.has_ended:
            return ""
        self._take_characters(is_end=True)
        return self._held_text + self._given(self._next_piece())

    def text(self) -> str:
        """The whole text, once it is finished."""
        return self._decode(0, len(self._ids))[: self._length]

    def _piece(self, token_id: int) -> str:
        if token_id in self._byte_of:
            self._held.append(self._byte_of[token_id])
            self._take_characters(is_end=False)
        else:
            self._take_characters(is_end=True)
            self._ids.append(token_id)
        piece = self._next_piece()
        # The rest of a character may follow, with decoders of bytes without byte tokens.
        return "" if piece.endswith(REPLACEMENT) else self._given(piece)

    def _before_end(self, piece: str) -> str:
        """The text with this piece that is surely before an end; the rest is held."""
        text = self._held_text + piece
        places = [place for end in self._ends if (place := text.find(end)) >= 0]
        if places:
            self._length = self._lengths[-1] - len(text) + min(places)
            return text[: min(places)]
        num_held = max(_num_begun(text, end) for end in self._ends)
        place = len(text) - num_held
        self._held_text = text[place:]
        return text[:place]

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


def _num_begun(text: str, end: str) -> int:
    """How many characters of `end` the text ends with; not all of them."""
    return next(n for n in reversed(range(len(end))) if text.endswith(end[:n]))


def _byte_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids of the 256 byte tokens; empty if the tokenizer has no byte fallback."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    ids = [token_id for token in tokens if (token_id := tokenizer.token_to_id(token)) is not None]
    if len(ids) < len(tokens):
        return []
    # Without byte fallback in its decoder, a tokenizer may have these as ordinary tokens.
    is_text = tokenizer.decode(ids[:1], skip_special_tokens=False) == tokens[0]
    return [] if is_text else ids
