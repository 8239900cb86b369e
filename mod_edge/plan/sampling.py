"""The choice of a reply's next token: the most likely, or drawn by temperature and top-p."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mod_edge.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How the tokens of replies are chosen; the decision to speak is never drawn.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token (greedy).
        top_p: tokens are drawn from the fewest most likely ones whose probabilities sum to at least
            this (nucleus sampling, arXiv:1904.09751); above 0, at most 1.
        seed: of the random numbers, from 0; each stream has its own.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature}, wanted 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p}, wanted a probability above 0, at most 1")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}, wanted 0 or more")
        if self.temperature == 0 and (self.top_p < 1 or self.seed > 0):
            raise ConfigError(
                f"top_p={self.top_p:g} and seed={self.seed} have no effect with temperature=0 "
                "(greedy); set a temperature, such as 0.7"
            )


GREEDY = Sampling()


class Sampler:
    """Chooses the tokens of one stream's replies, one after the other."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """A token from the logits (V,); the same for the same seed and the same logits so far."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        token_ids, probabilities = candidates(logits, self._sampling)
        sums = probabilities.cumsum()
        place = int(sums.searchsorted(self._random.random() * sums[-1], side="right"))
        return int(token_ids[min(place, len(token_ids) - 1)])  # the product may round up to the sum


def candidates(
    logits: npt.NDArray[np.float32], sampling: Sampling
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The tokens that may be drawn, with their probabilities, which sum to 1.

    Args:
        logits: (V,).
        sampling: with a temperature above 0.

    Returns:
        Ids (C,) and probabilities (C,), from the most likely on where `top_p` is below 1.
    """
    with np.errstate(over="ignore"):  # a tiny temperature: the others' probabilities are 0
        scaled = (logits.astype(np.float64) - logits.max()) / sampling.temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    if sampling.top_p == 1:
        return np.arange(logits.size), probabilities
    # Tokens below this are all left out: together they have less than 1 - top_p. Sorting the few
    # others takes a hundredth of the time of sorting a large vocabulary.
    token_ids = np.flatnonzero(probabilities >= (1 - sampling.top_p) / logits.size)
    order = np.argsort(-probabilities[token_ids], kind="stable")
    token_ids = token_ids[order]
    sorted_ones = probabilities[token_ids]
    is_kept = sorted_ones.cumsum() - sorted_ones < sampling.top_p
    kept = sorted_ones[is_kept]
    return token_ids[is_kept], kept / kept.sum()
