"""Requests to a stream that runs: as JSON, one object a line, or as a person types them.

{"query": "What happens?"}                       What happens?
{"query": "What happens?", "time_s": 12.5}
{"instruction": "Tell me when somebody enters."} /instruction Tell me when somebody enters.
{"threshold": 0.8}                               /threshold 0.8
{"cut": true}                                    /cut
{"stop": true}                                   /stop

With `"stream": NAME` a JSON object is for that stream alone, otherwise for all of them. A typed
line that begins with { is JSON too.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mod_edge.errors import ConfigError, NotStreamingError
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session

NAMES = ("query", "instruction", "threshold", "cut", "stop")
WANTED = (
    'wanted one of {"query": TEXT}, {"query": TEXT, "time_s": SECONDS}, {"instruction": TEXT}, '
    '{"threshold": 0-1}, {"cut": true}, {"stop": true}; with "stream": NAME for one of several '
    "streams"
)
TYPED = "wanted /instruction TEXT, /threshold 0-1, /cut or /stop; other text is a question"


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        name: one of `NAMES`.
        value: a text for a query and an instruction, a number for a threshold, else True.
        time_s: of a query, in seconds of video; None at once.
        stream: the name of a stream; None for all of them.
    """

    name: str
    value: Any
    time_s: float | None = None
    stream: str | None = None

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


def put_request(request: Request, sessions: Mapping[str, Session]) -> None:
    """Put a request to all sessions that it is for, also if one of them refuses it.

    Args:
        request: see `Request.put_to`.
        sessions: that stream, by the names of their streams.

    Raises:
        ConfigError: no stream has the request's name, or sessions refuse it. That one has ended
            does not matter while another one takes it.
    """
    if request.stream is not None and request.stream not in sessions:
        raise ConfigError(f'"stream": {_shown(request.stream)}, but {_known(sessions)}')
    asked = [each for name, each in list(sessions.items()) if request.stream in (None, name)]
    refusals = list[ConfigError]()
    for session in asked:
        try:
            request.put_to(session)
        except ConfigError as exc:
            refusals.append(exc)
    if len(refusals) < len(asked):  # somebody took it
        refusals = [exc for exc in refusals if not isinstance(exc, NotStreamingError)]
    if refusals:
        raise ConfigError("; ".join(dict.fromkeys(map(str, refusals)))) from refusals[0]


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
    known = {*NAMES, "stream", *(["time_s"] if "query" in document else [])}
    if len(names) != 1 or not known.issuperset(document):
        keys = ", ".join(document) or "(none)"
        raise ConfigError(f"{_shown(line)} has the keys {_shown(keys)}; {WANTED}")
    name, stream = names[0], document.get("stream")
    if "stream" in document and not isinstance(stream, str):
        raise ConfigError(f'"stream": {_shown(json.dumps(stream))}, wanted the name of a stream')
    return Request(name, _value(name, document[name]), _time_s(document), stream)


def request_from_typed(line: str) -> Request:
    """The request that a person typed: a question, or a command that begins with a slash, or JSON.

    Raises:
        ConfigError: the command is unknown or has a wrong value; see `request_from_json`.
    """
    if line.startswith("{"):
        return request_from_json(line)
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


def _value(name: str, value: Any) -> Any:
    """A request's value, of the right type; the session checks the rest."""
    if name in ("query", "instruction"):
        is_right, wanted = isinstance(value, str), "a string"
    elif name == "threshold":
        is_right, wanted = _is_number(value), "a number, 0 to 1"
    else:
        is_right, wanted = value is True, "true"
    if not is_right:
        raise ConfigError(f'"{name}": {_shown(json.dumps(value))}, wanted {wanted}')
    return float(value) if name == "threshold" else value


def _time_s(document: dict[str, Any]) -> float | None:
    if "time_s" not in document:
        return None
    time_s = document["time_s"]
    if not _is_number(time_s):
        shown = _shown(json.dumps(time_s))
        raise ConfigError(f'"time_s": {shown}, wanted a number of seconds of video')
    return float(time_s)


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold; JSON's may be longer, or NaN here."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def _known(sessions: Mapping[str, Session]) -> str:
    """Which streams there are, and what to do."""
    if not sessions:
        return "all streams have ended"
    names = [_shown(name) for name in sessions if name]
    if not names:
        return "there is only one stream, without a name; omit it"
    return f"the streams are {', '.join(names)}; name one, or omit it for all"


def _shown(line: str) -> str:
    """The start of a line, for a message."""
    return repr(line if len(line) <= 60 else f"{line[:60]}...")
