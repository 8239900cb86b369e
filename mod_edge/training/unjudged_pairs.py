"""Pairs of words: right after the first one, the loss does not rule out the second.

A data set may leave combinations out on purpose, to show what a model makes of new ones. Trained on
it, a model learns that "star" never follows "red" as surely as everything else. So at a word that
follows "red", "star" is not among the words to choose from.
"""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mod_edge.errors import DataError


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

    def without(self, logits: Tensor, before: Tensor, labels: Tensor) -> Tensor:
        """The logits, -inf for the second word of each pair whose first word came before.

        A label is never left out: data that has a pair after all is learned.

        Args:
            logits: (L, V).
            before: (L,) int64, the last token that each row has read.
            labels: (L,) int64.
        """
        is_unjudged = (before[:, None] == self._first) & (labels[:, None] != self._second)
        rows, pairs = is_unjudged.nonzero(as_tuple=True)
        return logits.index_put((rows, self._second[pairs]), logits.new_tensor(-torch.inf))


def _token_ids(word: str, tokenizer: Tokenizer) -> list[int]:
    ids: list[int] = tokenizer.encode(f" {word}", add_special_tokens=False).ids
    return ids
