"""Pairs of words: after the first one, the loss hardly rules out the second.

A data set may leave combinations out on purpose, to show what a model makes of new ones. Trained on
it, a model learns that a red object is never a star as surely as everything else. So at a word of a
turn in which "red" was said last, "star" counts for less among the words to choose from: training
pushes it down while it would win, and hardly once it is a little behind.

The pair holds for all words of the turn up to the next first word of a pair, not only the next one:
to the question "Which object is red?" the answer begins with "The".
"""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mod_edge.errors import DataError

# Logits of second words are lowered by it: one that equals the right word's is pushed down by 0.02
# of what other words are.
LOWERED_BY = 4.0


class UnjudgedPairs:
    """The token ids of the pairs."""

    def __init__(self, pairs: Sequence[str], tokenizer: Tokenizer, device: torch.device) -> None:
        """`pairs` are two words each, like "red star"; on `device` the logits are.

        Raises:
            DataError: a pair is not two words, or a word is not one token; names all such pairs.
        """
        ids, faults = [], []
        for pair in pairs:
            words = [_token_ids(word, tokenizer) for word in pair.split()]
            if len(words) != 2 or any(len(word) != 1 for word in words):
                faults.append(repr(pair))
            else:
                ids.append((words[0][0], words[1][0]))
        if faults:
            raise DataError(
                f"[train] unjudged_pairs: {', '.join(faults)} are not two words of one token each; "
                "name two words that the tokenizer knows"
            )
        found = torch.tensor(ids, dtype=torch.int64, device=device).reshape(-1, 2)
        self._first, self._second = found[:, 0], found[:, 1]

    def first_words(self, token_ids: Tensor, is_text: Tensor) -> Tensor:
        """(B, T) int64: the last first word of a pair since the last frame, -1 for none.

        Args:
            token_ids: (B, T) int64.
            is_text: (B, T) bool; neither frame nor padding.
        """
        places = torch.arange(token_ids.shape[1], device=token_ids.device).expand_as(token_ids)
        is_first = is_text & torch.isin(token_ids, self._first)
        word = torch.where(is_first, places, -1).cummax(dim=1).values
        frame = torch.where(is_text, -1, places).cummax(dim=1).values
        return token_ids.gather(1, word.clamp(min=0)).masked_fill(word <= frame, -1)

    def lowered(self, logits: Tensor, first_words: Tensor, labels: Tensor) -> Tensor:
        """The logits, lowered for the second words of the pairs whose first word was said.

        A label is never lowered: data that has a pair after all is learned.

        Args:
            logits: (L, V).
            first_words: (L,) int64, of each row, from `first_words`.
            labels: (L,) int64.
        """
        is_unjudged = (first_words[:, None] == self._first) & (labels[:, None] != self._second)
        rows, pairs = is_unjudged.nonzero(as_tuple=True)
        lowering = logits.new_tensor(-LOWERED_BY).expand(len(rows))
        return logits.index_put((rows, self._second[pairs]), lowering, accumulate=True)


def _token_ids(word: str, tokenizer: Tokenizer) -> list[int]:
    ids: list[int] = tokenizer.encode(f" {word}", add_special_tokens=False).ids
    return ids
