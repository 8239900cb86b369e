"""What a person asks of the stream, and when."""

import re
from dataclasses import dataclass

from mod_edge.errors import ConfigError


@dataclass(frozen=True)
class Query:
    """A question or instruction to put to the model at `time_s` seconds of video."""

    text: str
    time_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ConfigError("a query is empty; give it some words")


def parse_query(text: str) -> Query:
    """The query that "text" or "text@12.5" means: at the start, or at 12.5 s of video.

    Only an @ followed by a number splits, and of several the last one.
    """
    match = re.fullmatch(r"(.*)@\s*(\d+(?:\.\d+)?)\s*", text, flags=re.DOTALL)
    if match is None:
        return Query(text)
    return Query(match[1].rstrip(), float(match[2]))
