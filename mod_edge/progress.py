"""The callback by which long work reports its progress."""

from collections.abc import Callable

OnStep = Callable[[str, float, float], None]
"""Called with the name of the part that begins, the amount done and the total."""


def not_shown(_part: str, _done: float, _total: float) -> None:
    """Ignore the progress: the default of functions that take an `OnStep`."""
