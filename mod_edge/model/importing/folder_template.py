"""Recognise the chat template of a Hugging Face folder, by what it renders.

A published template is a program in Jinja's language. It is rendered in a sandbox, as transformers
does it, on short conversations. If their text is what one of our templates gives, that one is it,
maybe with a fixed text before the system prompt, such as Llama 3.1's dates.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mod_edge.config import ChatTemplate
from mod_edge.errors import ConfigError, shortened
from mod_edge.plan.chat import TEMPLATES

END_OF_TURN = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}
SYSTEM, QUERY, REPLY, NEXT_QUERY = "You watch.", "What is it?", "A red ball.", "And now?"
PLACEHOLDER = "{system}"
Messages = tuple[tuple[str, str], ...]
FIRST_TURN: Messages = (("system", SYSTEM), ("user", QUERY))
SECOND_TURN: Messages = (*FIRST_TURN, ("assistant", REPLY), ("user", NEXT_QUERY))
WITHOUT_SYSTEM = FIRST_TURN[1:]


@dataclass(frozen=True)
class FolderTemplate:
    """A folder's own template as one of ours.

    Attributes:
        name: in `TEMPLATES`.
        chat_template: that one; its system turn may begin with a fixed text.
        has_bos: whether a conversation begins with the tokenizer's bos token.
        default_system: the system prompt that the template has if none is given, maybe empty.
        conversations: rendered, with the user's turns, the reply between them if there are two.
    """

    name: str
    chat_template: ChatTemplate
    has_bos: bool
    default_system: str
    conversations: tuple[str, str]


class GenerationBlock(Extension):
    """transformers' own tag around what the model says; it writes what it contains."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own annotation is that of an instance

    def parse(self, parser: Parser) -> list[Node]:
        """The nodes of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def recognised(source: str, special_tokens: Mapping[str, str]) -> FolderTemplate:
    """The template in the program `source`.

    Args:
        source: Jinja text.
        special_tokens: the names that the program may use, such as "bos_token".

    Raises:
        ConfigError: it cannot be rendered, or is none of ours; a clause that tells so.
    """
    first, second = (
        _rendered(source, special_tokens, turns) for turns in (FIRST_TURN, SECOND_TURN)
    )
    # The bos token may be the system turn's own first token, so the shorter match comes first.
    beginnings = [(False, ""), (True, special_tokens.get("bos_token", ""))]
    for name in END_OF_TURN:
        for has_bos, bos in beginnings:
            template = _with_fixed_text(TEMPLATES[name], first.removeprefix(bos))
            ours = tuple(
                bos + _written(template, END_OF_TURN[name], turns)
                for turns in (FIRST_TURN, SECOND_TURN)
            )
            if ours == (first, second):
                default = _default_system(source, special_tokens, bos, template)
                return FolderTemplate(name, template, has_bos, default, (first, second))
    raise ConfigError(
        f"the folder's is none of {', '.join(END_OF_TURN)}: it makes {shortened(first)} of a "
        "system prompt and a question"
    )


def _with_fixed_text(template: ChatTemplate, rendered: str) -> ChatTemplate:
    """`template` with the text that stands before the system prompt in `rendered`, if any."""
    before, _, after = template.system.partition(PLACEHOLDER)
    fixed = rendered.removeprefix(before).partition(SYSTEM)[0]
    if "{" in fixed or any(token in fixed for token in template.control_tokens):
        return template
    return replace(template, system=before + fixed + PLACEHOLDER + after)


def _written(template: ChatTemplate, end: str, turns: Messages) -> str:
    """Our text of a conversation, with the prompt for its next reply."""
    text = ""
    for role, content in turns:
        if role == "assistant":
            text += template.generation + template.reply.replace("{reply}", content) + end
        else:
            string = template.system if role == "system" else template.query
            text += string.replace(PLACEHOLDER, content).replace("{query}", content)
    return text + template.generation


def _default_system(
    source: str, special_tokens: Mapping[str, str], bos: str, template: ChatTemplate
) -> str:
    """The system prompt of a conversation without one; empty if it has no system turn."""
    try:
        rendered = _rendered(source, special_tokens, WITHOUT_SYSTEM)
    except ConfigError:
        return ""
    before, _, after = template.system.partition(PLACEHOLDER)
    before, after = bos + before, after + _written(template, "", WITHOUT_SYSTEM)
    if not (rendered.startswith(before) and rendered.endswith(after)):
        return ""
    default = rendered[len(before) : len(rendered) - len(after)]
    return "" if any(token in default for token in template.control_tokens) else default


def _rendered(source: str, special_tokens: Mapping[str, str], turns: Messages) -> str:
    """The text that the program makes of a conversation, with the prompt for its next reply."""
    # What transformers defines, but the date: a template has a fixed one to use without it.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock]
    )
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = _refused
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        return environment.from_string(source).render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **special_tokens,
        )
    except Exception as exc:  # a program may fail in any way
        raise ConfigError(f"the folder's cannot be rendered ({type(exc).__name__}: {exc})") from exc


def _json(value: Any, **options: Any) -> str:
    return json.dumps(value, **({"ensure_ascii": False} | options))


def _refused(message: str) -> None:
    raise ValueError(message)
