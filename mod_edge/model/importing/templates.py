"""The streaming protocol of an imported model: chat template, silent and speak strings, end tokens.

The silent and the speak string must be one token each. `auto` takes the first that are from
`SILENT_STRINGS` and `SPEAK_STRINGS`, the published ones if possible; a named template has the
published ones or is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mod_edge.config import ChatTemplate, StreamConfig
from mod_edge.dataclass_reader import JSON, TOML, dataclass_from_dict
from mod_edge.document_parser import parse_json, parse_toml
from mod_edge.errors import CheckpointError, ConfigError, nearest_hint
from mod_edge.model.checkpoint_folder import require_files, unreadable
from mod_edge.model.importing.folder_template import (
    END_OF_TURN,
    NEXT_QUERY,
    QUERY,
    REPLY,
    SYSTEM,
    FolderTemplate,
    recognised,
)
from mod_edge.model.importing.source_folder import read_document
from mod_edge.plan.chat import TEMPLATES, control_ids_of, parts_of_string
from mod_edge.plan.protocol import Protocol
from mod_edge.plan.tokenizer import INTERVAL, STREAM_END, SYSTEM_PROMPT, text_ids

AUTO, PLAIN = "auto", "plain"
TEMPLATE_NAMES = (AUTO, *TEMPLATES)
SILENT_STRINGS = (INTERVAL, " ,", ";", " ;", "|", " |", ".")
SPEAK_STRINGS = (STREAM_END, "]", " ]", "]\n\n", ")", ">", "!")
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
NUM_CANDIDATES_SHOWN = 3

OneToken = tuple[str, int]  # a string and the id of its one token
OnNote = Callable[[str], None]
"""Called with a line about what was chosen."""


@dataclass(frozen=True)
class TemplateFile(ChatTemplate):
    """A template file: a `ChatTemplate`'s fields, and three more that it may set.

    Attributes:
        frame_token_interval: the silent string; None: the first of `SILENT_STRINGS` that fits.
        stream_end: the speak string; None: the first of `SPEAK_STRINGS` that fits.
        end_of_turn: the token that ends a reply; None: the folder's eos token.
    """

    frame_token_interval: str | None = None
    stream_end: str | None = None
    end_of_turn: str | None = None


@dataclass(frozen=True)
class _Choice:
    """A chosen template; the strings are in the order of preference.

    Attributes:
        origin: the template's name in messages.
        end_of_turn: the token that ends a reply; None: the folder's eos token.
        has_bos: whether the folder's bos token opens a conversation.
    """

    origin: str
    chat_template: ChatTemplate
    silent: Sequence[str]
    speak: Sequence[str]
    end_of_turn: str | None
    has_bos: bool
    system_prompt: str = SYSTEM_PROMPT


class _Folder:
    """What a folder's files say about its tokens and its template."""

    def __init__(self, path: Path, config: dict[str, Any], tokenizer: Tokenizer) -> None:
        self.path = path
        self._tokenizer = tokenizer
        self._settings = read_document(path, TOKENIZER_CONFIG) or {}
        generation = read_document(path, GENERATION_CONFIG) or {}
        self._configs = {"config.json": config, GENERATION_CONFIG: generation}
        faults: list[str] = []
        self.bos_id = self._bos_id(faults)
        self.end_ids = self._end_ids(faults)
        if faults:
            raise CheckpointError(f"{path}: {'; '.join(faults)}")

    def template_source(self) -> str | None:
        """The program of the folder's chat template, if it has one."""
        path = self.path / TEMPLATE_FILE
        if path.exists():
            require_files(self.path, [path])
            try:
                return path.read_text(encoding="utf-8", errors="replace")
            except OSError as exc:
                raise unreadable(path, exc) from exc
        source = self._settings.get("chat_template")
        if isinstance(source, list):  # several, by name
            named = {each.get("name"): each for each in source if isinstance(each, dict)}
            source = named.get("default", {}).get("template")
        return source if isinstance(source, str) else None

    def special_tokens(self) -> dict[str, str]:
        """The control tokens that tokenizer_config.json names, by their names there."""
        tokens = {name: _content(value) for name, value in self._settings.items()}
        return {name: token for name, token in tokens.items() if name.endswith("_token") and token}

    def _bos_id(self, faults: list[str]) -> int | None:
        """The id of the bos token; tokenizer_config.json may say that there is none."""
        if "bos_token" in self._settings:
            return self._id_of_token("bos_token", faults)
        bos_id = self._configs["config.json"].get("bos_token_id")
        return next(iter(self._known_ids("config.json", "bos_token_id", bos_id, faults)), None)

    def _end_ids(self, faults: list[str]) -> tuple[int, ...]:
        """All tokens that end a reply, those that end a turn of a known template first."""
        num_faults = len(faults)
        token_id = self._id_of_token("eos_token", faults)
        ids = [] if token_id is None else [token_id]
        for file, config in self._configs.items():
            ids += self._known_ids(file, "eos_token_id", config.get("eos_token_id"), faults)
        if not ids and len(faults) == num_faults:
            faults.append(
                f"no end token: neither eos_token in {TOKENIZER_CONFIG} nor eos_token_id in "
                f"{' or '.join(self._configs)}; add eos_token_id to config.json"
            )
        turns = {self._tokenizer.token_to_id(token) for token in END_OF_TURN.values()}
        return tuple(sorted(dict.fromkeys(ids), key=lambda each: each not in turns))

    def _id_of_token(self, name: str, faults: list[str]) -> int | None:
        token = _content(self._settings.get(name))
        if token is None:
            return None
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            faults.append(
                f"{name}={token!r} of {TOKENIZER_CONFIG} is not a token of the tokenizer within "
                "the embedding; take both files from one model"
            )
        return token_id

    def _known_ids(self, file: str, name: str, value: object, faults: list[str]) -> list[int]:
        values = value if isinstance(value, list) else [] if value is None else [value]
        known = set(self._tokenizer.get_vocab(with_added_tokens=True).values())
        ids = [each for each in values if type(each) is int and each in known]
        if len(ids) < len(values):
            faults.append(f"{name}={value!r} of {file}, wanted ids of tokens in the tokenizer")
        return ids


def stream_config_for(
    tokenizer: Tokenizer,
    folder: Path,
    config: dict[str, Any],
    template: str | Path,
    *,
    note: OnNote = lambda _line: None,
) -> StreamConfig:
    """The streaming protocol of the model in `folder`.

    Args:
        tokenizer: of `imported_tokenizer`; the template's control tokens become special in it.
        folder: of a Hugging Face model.
        config: its config.json, parsed.
        template: "auto" (the folder's own, if it is one of `TEMPLATES`, else plain), a name in
            `TEMPLATES`, or a TOML or JSON file with the fields of `TemplateFile`.
        note: called with lines for people: which template, strings and end tokens were chosen.

    Raises:
        CheckpointError: the folder names no end token, or tokens that do not exist.
        ConfigError: an unknown template, a faulty file, a control token that the tokenizer lacks,
            or strings that are not one token each, with strings that are.
    """
    source = _Folder(folder, config, tokenizer)
    if template == AUTO:
        stream = _automatic(source, tokenizer, note)
    elif template in TEMPLATES:
        stream = _stream(_named(str(template)), source, tokenizer)
        note(f"chat template: {template}")
    else:
        stream = _stream(_from_file(Path(template)), source, tokenizer)
        note(f"chat template: {template}")
    ends = [tokenizer.id_to_token(each) for each in (stream.eos_token_id, *stream.stop_token_ids)]
    note(
        f"silent is {stream.frame_token_interval!r}, speak is {stream.stream_end!r}, a reply ends "
        f"with {' or '.join(map(repr, ends))}"
    )
    return stream


def _automatic(source: _Folder, tokenizer: Tokenizer, note: OnNote) -> StreamConfig:
    """The protocol with the folder's own template if that is one of ours, else with plain."""
    try:
        found = _own_template(source)
        stream = _stream(_recognised(found), source, tokenizer)
        _check_ids(found, stream, tokenizer)
    except ConfigError as exc:
        note(f"chat template: {PLAIN}, because {exc}")
        plain = replace(_named(PLAIN), silent=SILENT_STRINGS, speak=SPEAK_STRINGS)
        return _stream(plain, source, tokenizer)
    note(f"chat template: {found.name}, the folder's own")
    return stream


def _own_template(source: _Folder) -> FolderTemplate:
    program = source.template_source()
    if program is None:
        raise ConfigError("the folder has none")
    return recognised(program, source.special_tokens())


def _check_ids(found: FolderTemplate, stream: StreamConfig, tokenizer: Tokenizer) -> None:
    """Check that our ids of a conversation are those of its whole text."""
    protocol = Protocol(replace(stream, system_prompt=SYSTEM), tokenizer, threshold=0)
    first = protocol.text_prompt(QUERY)
    *said, end = protocol.reply_ids(REPLY)
    protocol.note_reply([end])
    ours = [first, [*first, *said, *protocol.text_prompt(NEXT_QUERY)]]
    for text, ids in zip(found.conversations, ours, strict=True):
        if (whole := _ids_of_whole(tokenizer, text)) != ids:
            raise ConfigError(
                f"the tokenizer splits the folder's own otherwise as a whole, {whole}, than turn "
                f"by turn, {ids}"
            )


def _ids_of_whole(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text in which control tokens are matched."""
    tokenizer.encode_special_tokens = False
    try:
        return text_ids(tokenizer, text)
    finally:
        tokenizer.encode_special_tokens = True


def _recognised(found: FolderTemplate) -> _Choice:
    return _Choice(
        origin=found.name,
        chat_template=found.chat_template,
        silent=SILENT_STRINGS,
        speak=SPEAK_STRINGS,
        end_of_turn=END_OF_TURN[found.name],
        has_bos=found.has_bos,
        system_prompt=found.default_system or SYSTEM_PROMPT,
    )


def _named(name: str) -> _Choice:
    return _Choice(
        origin=name,
        chat_template=TEMPLATES[name],
        silent=(INTERVAL,),
        speak=(STREAM_END,),
        end_of_turn=END_OF_TURN.get(name),
        has_bos=name != "chatml",
    )


def _from_file(path: Path) -> _Choice:
    parse, syntax = (parse_json, JSON) if path.suffix == ".json" else (parse_toml, TOML)
    try:
        document = parse(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(
            f"template {str(path)!r} cannot be read ({exc.strerror}), wanted "
            f"{', '.join(TEMPLATE_NAMES)}, or a TOML or JSON file"
            f"{nearest_hint(str(path), TEMPLATE_NAMES)}"
        ) from exc
    except ValueError as exc:
        kind = "JSON" if syntax is JSON else "TOML"
        raise ConfigError(f"{path} is not valid {kind}: {exc}") from exc
    if not isinstance(document, dict):
        raise ConfigError(f"{path} contains a {type(document).__name__}, wanted an object")
    file = dataclass_from_dict(TemplateFile, document, str(path), syntax=syntax, error=ConfigError)
    strings = {field.name: getattr(file, field.name) for field in fields(ChatTemplate)}
    silent, speak = file.frame_token_interval, file.stream_end
    return _Choice(
        origin=str(path),
        chat_template=ChatTemplate(**strings),
        silent=SILENT_STRINGS if silent is None else (silent,),
        speak=SPEAK_STRINGS if speak is None else (speak,),
        end_of_turn=file.end_of_turn,
        has_bos=True,
    )


def _stream(choice: _Choice, source: _Folder, tokenizer: Tokenizer) -> StreamConfig:
    """The protocol of a choice, checked against the tokenizer."""
    template = choice.chat_template
    faults = _control_token_faults(choice, tokenizer)
    if faults:
        raise ConfigError(f"template {choice.origin}: {'; '.join(faults)}")
    added = tokenizer.get_added_tokens_decoder().values()
    unmarked = [each.content for each in added if not each.special]
    # Without the mark "special", text would match them; the file that is written keeps it.
    tokenizer.add_special_tokens([each for each in unmarked if each in template.control_tokens])
    eos_id, *stop_ids = _end_ids(choice, source, tokenizer)
    system = parts_of_string(template.system, control_ids_of(template, tokenizer))
    # The system turn may begin with the bos token itself, as SmolLM2's does.
    bos_id = source.bos_id if choice.has_bos and system[0] != source.bos_id else None
    for (silent, silent_id), (speak, speak_id) in _strings(choice, tokenizer):
        stream = StreamConfig(
            choice.system_prompt,
            bos_id,
            eos_id,
            silent,
            silent_id,
            speak,
            speak_id,
            chat_template=template,
            stop_token_ids=tuple(stop_ids),
        )
        if _feeds_what_it_predicts(stream, tokenizer):
            return stream
    raise ConfigError(
        f"template {choice.origin}: stream_end {', '.join(map(repr, choice.speak))} and the prompt "
        "after it become other tokens than stream_end alone; give another stream_end in a "
        "template file"
    )


def _end_ids(choice: _Choice, source: _Folder, tokenizer: Tokenizer) -> tuple[int, ...]:
    """All tokens that end a reply; the one that is fed comes first."""
    if choice.end_of_turn is None:
        return source.end_ids
    end_id = tokenizer.token_to_id(choice.end_of_turn)
    assert end_id is not None, "_control_token_faults refuses a tokenizer without it"
    return (end_id, *(each for each in source.end_ids if each != end_id))


def _feeds_what_it_predicts(stream: StreamConfig, tokenizer: Tokenizer) -> bool:
    """Whether the prompts after a frame begin with the speak token, which the model predicted."""
    protocol = Protocol(stream, tokenizer, threshold=0)
    protocol.note_frame()
    prompts = [protocol.response_prompt(query) for query in (None, QUERY)]
    return all(prompt[0] == stream.stream_end_id for prompt in prompts)


def _control_token_faults(choice: _Choice, tokenizer: Tokenizer) -> list[str]:
    template = choice.chat_template
    added = tokenizer.get_added_tokens_decoder().values()
    known = {token.content for token in added}
    wanted = {*template.control_tokens, *filter(None, [choice.end_of_turn])}
    missing = sorted(wanted - known)
    faults = []
    if missing:
        fit = [name for name, each in TEMPLATES.items() if known.issuperset(each.control_tokens)]
        faults.append(
            f"the tokenizer has no token {', '.join(map(repr, missing))}; templates that fit it: "
            f"{', '.join(fit)}"
        )
    strings = (template.system, template.stream_start, template.query, template.generation)
    unlisted = [
        token.content
        for token in added
        if token.special
        and token.content not in template.control_tokens
        and any(token.content in string for string in (*strings, template.reply))
    ]
    if unlisted:
        faults.append(
            f"its strings contain the control tokens {', '.join(map(repr, unlisted))}; add them to "
            "control_tokens"
        )
    return faults


def _strings(choice: _Choice, tokenizer: Tokenizer) -> list[tuple[OneToken, OneToken]]:
    """Pairs of a silent and a speak string that are one token each, the best first."""
    silent = _one_token_each(tokenizer, choice.silent)
    speak = _one_token_each(tokenizer, choice.speak)
    pairs = [(one, other) for one in silent for other in speak if one[1] != other[1]]
    if pairs:
        return pairs
    faults = [
        _string_fault(tokenizer, field, strings, known)
        for field, strings, found, known in (
            ("frame_token_interval", choice.silent, silent, SILENT_STRINGS),
            ("stream_end", choice.speak, speak, SPEAK_STRINGS),
        )
        if not found
    ]
    faults = faults or ["frame_token_interval and stream_end are the same token"]
    raise ConfigError(
        f"template {choice.origin}: {'; '.join(faults)}; set such strings in a template file"
    )


def _string_fault(
    tokenizer: Tokenizer, field: str, strings: Sequence[str], known: Sequence[str]
) -> str:
    """What is wrong with a field for which none of `strings` is one token."""
    if strings is known:
        tried = ", ".join(map(repr, strings))
        return f"{field}: the tokenizer has one token for none of {tried}"
    counts = [f"{string!r} is {len(text_ids(tokenizer, string))} tokens" for string in strings]
    fit = [repr(string) for string, _ in _one_token_each(tokenizer, known)]
    shown = ", ".join(fit[:NUM_CANDIDATES_SHOWN]) or f"none of {', '.join(map(repr, known))}"
    return f"{field} {', '.join(counts)}, wanted one; strings that are: {shown}"


def _one_token_each(tokenizer: Tokenizer, strings: Sequence[str]) -> list[OneToken]:
    """Those of the strings that are one token, with its id."""
    found = [(string, text_ids(tokenizer, string)) for string in strings]
    return [
        (string, ids[0])
        for string, ids in found
        # Not the token of all unknown characters; a dummy space may precede the string.
        if len(ids) == 1 and tokenizer.decode(ids).lstrip(" ") == string.lstrip(" ")
    ]


def _content(value: object) -> str | None:
    """The text of a token as tokenizer_config.json writes it: a string, or an object with it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
