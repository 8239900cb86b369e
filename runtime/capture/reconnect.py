"""How long and how often to try to open a lost source again."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from mod_edge.errors import ConfigError

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0


def parse_reconnect(text: str) -> float:
    """The seconds that "60s", "forever" (infinity) or "off" (0) names.

    Raises:
        ConfigError: it is none of these.
    """
    if text in ("off", "forever"):
        return 0.0 if text == "off" else math.inf
    seconds = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)s", text)
    if seconds is None or float(seconds[1]) == 0:
        raise ConfigError(
            f"cannot reconnect {text!r}: wanted off, forever, or a number of seconds such as 60s"
        )
    return float(seconds[1])


def retry_delays_s(random: Random) -> Iterator[float]:
    """Seconds to wait before each attempt: doubled from one to the next, up to 30.

    Each is shortened at random by up to a half, so that devices which lost a server together do not
    all come back at the same moment.
    """
    delay_s = FIRST_DELAY_S
    while True:
        yield delay_s * random.uniform(0.5, 1.0)
        delay_s = min(2 * delay_s, LONGEST_DELAY_S)


@dataclass
class Outage:
    """A lost source, until its next picture.

    Attributes:
        reason: why it was lost, and the time of it, in seconds of `Clock.now_s`.
        num_attempts: to open it again so far.
        delays_s: before the next attempts.
    """

    reason: str
    since_s: float
    num_attempts: int = 0
    delays_s: Iterator[float] = field(default_factory=lambda: retry_delays_s(Random()))
