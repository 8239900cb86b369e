"""A chat template's strings as token ids: its control tokens by id, all else as text.

Text between two control tokens is encoded in one go, as the tokenizer encodes it in a whole
conversation. What people write never becomes a control token, whatever it says.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby

from tokenizers import Tokenizer

from mod_edge.config import ChatTemplate
from mod_edge.plan.tokenizer import text_ids

Part = str | int  # a text, or the id of a control token

# By the names that `mod-edge import --template` takes.
TEMPLATES = {
    "plain": ChatTemplate(),
    "chatml": ChatTemplate(
        system="<|im_start|>system\n{system}<|im_end|>",
        stream_start="\n[",
        query="\n<|im_start|>user\n{query}<|im_end|>",
        generation="\n<|im_start|>assistant\n",
        reply="{reply}",
        control_tokens=("<|im_start|>", "<|im_end|>"),
    ),
    "llama3": ChatTemplate(
        system="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        stream_start="[",
        query="<|start_header_id|>user<|end_header_id|>\n\n{query}<|eot_id|>",
        generation="<|start_header_id|>assistant<|end_header_id|>\n\n",
        reply="{reply}",
        control_tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
}


def control_ids_of(template: ChatTemplate, tokenizer: Tokenizer) -> dict[str, int]:
    """The template's control tokens with their ids; `tokenizer` must have them all."""
    ids: dict[str, int] = {}
    for token in template.control_tokens:
        token_id = tokenizer.token_to_id(token)
        assert token_id is not None, f"read_tokenizer refuses a tokenizer without {token!r}"
        ids[token] = token_id
    return ids


def parts_of_string(string: str, control_ids: Mapping[str, int], **written: str) -> list[Part]:
    """The parts of one string of a `ChatTemplate`, in their order.

    Args:
        string: with `{name}` for each name of `written`.
        control_ids: of the template's control tokens.
        written: what people write there, which is text alone.
    """
    # The longest first: one control token's name may begin with another's.
    names = sorted(control_ids, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, names))})", string) if names else [string]
    parts: list[Part] = []
    for piece in pieces:
        if piece in control_ids:
            parts.append(control_ids[piece])
            continue
        for name, text in written.items():
            piece = piece.replace(f"{{{name}}}", text)
        if piece:
            parts.append(piece)
    return parts


def ids_of_parts(tokenizer: Tokenizer, parts: Sequence[Part]) -> list[int]:
    """The ids of `parts`, one after the other; texts side by side are encoded as one.

    Args:
        tokenizer: prepared.
        parts: texts without lone surrogates, and ids.
    """
    ids: list[int] = []
    for is_control, group in groupby(parts, key=lambda part: isinstance(part, int)):
        if is_control:
            ids += (part for part in group if isinstance(part, int))
        else:
            ids += text_ids(tokenizer, "".join(map(str, group)))
    return ids
