"""Requests to a stream that runs: as JSON, one object a line, or as a person types them.

{"query": "What happens?"}                       What happens?
{"query": "What happens?", "time_s": 12.5}
{"instruction": "Tell me when somebody enters."} /instruction Tell me when somebody enters.
{"threshold": 0.8}                               /threshold 0.8
{"cut": true}                                    /cut
{"stop": true}                                   /stop
"""

import json
import sys
from dataclasses import dataclass
from typing import Any

from mod_edge.errors import ConfigError
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session

NAMES = ("query", "instruction", "threshold", "cut", "stop")
WANTED = (
    'wanted one of {"query": TEXT}, {"query": TEXT, "time_s": SECONDS}, {"instruction": TEXT}, '
    '{"threshold": 0-1}, {"cut": true}, {"stop": true}'
)
TYPED = "wanted /instruction TEXT, /threshold 0-1, /cut or /stop; other text is a question"


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        name: one of `NAMES`.
        value: a text for a query and an instruction, a number for a threshold, else True.
        time_s: of a query, in seconds of video; None at once.
    """

    name: str
    value: Any
    time_s: float | None = None

    def put_to(self, session: Session) -> None:
        """Do what is asked for; from any thread, while the session streams.

        Raises:
            ConfigError: the session refuses it, see its methods.
        """
        if self.name == "query":
            text = self.value
            session.ask(text if self.time_s is None else Query(text, self.time_s))
        elif self.name == "instruction":
            session.instruct(self.value)
        elif self.name == "threshold":
            session.set_threshold(self.value)
        elif self.name == "cut":
            session.cut_reply()
        else:
            session.stop()


def request_from_json(line: str) -> Request:
    """The request in a line of JSON.

    Raises:
        ConfigError: the line is not a JSON object, or not one of those above.
    """
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{_shown(line)} is not JSON ({exc}); {WANTED}") from exc
    if not isinstance(document, dict):
        raise ConfigError(f"{_shown(line)} is not a JSON object; {WANTED}")
    names = [name for name in document if name in NAMES]
    time_s = document.get("time_s")
    unknown = set(document) - {*NAMES, *(["time_s"] if "query" in document else [])}
    if unknown or len(names) != 1:
        keys = ", ".join(document) or "(none)"
        raise ConfigError(f"{_shown(line)} has the keys {_shown(keys)}; {WANTED}")
    name = names[0]
    if "time_s" in document and not _is_number(time_s):
        raise ConfigError(f'"time_s": {json.dumps(time_s)}, wanted a number of seconds of video')
    value = document[name]
    _check_value(name, value)
    if name == "threshold":
        value = float(value)
    return Request(name, value, None if time_s is None else float(time_s))


def request_from_typed(line: str) -> Request:
    """The request that a person typed: a question, or a command that begins with a slash.

    Raises:
        ConfigError: the command is unknown or has a wrong value.
    """
    if not line.startswith("/"):
        return Request("query", line.strip())
    name, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    if name == "instruction" and rest:
        return Request(name, rest)
    if name in ("cut", "stop") and not rest:
        return Request(name, True)
    if name == "threshold":
        try:
            return Request(name, float(rest))
        except ValueError:
            pass  # told below, as for other commands
    raise ConfigError(f"{_shown(line)} is not a command; {TYPED}")


def _check_value(name: str, value: Any) -> None:
    """Check the type of a request's value; the session checks the rest."""
    if name in ("query", "instruction"):
        is_right, wanted = isinstance(value, str), "a string"
    elif name == "threshold":
        is_right, wanted = _is_number(value), "a number, 0 to 1"
    else:
        is_right, wanted = value is True, "true"
    if not is_right:
        raise ConfigError(f'"{name}": {_shown(json.dumps(value))}, wanted {wanted}')


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold; JSON's may be longer, or NaN here."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def _shown(line: str) -> str:
    """The start of a line, for a message."""
    return repr(line if len(line) <= 60 else f"{line[:60]}...")
