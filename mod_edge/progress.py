"""How work that takes long tells how far it is."""

from collections.abc import Callable

OnStep = Callable[[str, float, float], None]
"""Told the name of the part that begins, how much is done, and of how much."""


def not_shown(_part: str, _done: float, _total: float) -> None:
    """For callers that do not ask."""
