"""Chat templates: prompts of text alone as transformers makes them, streams around them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mod_edge.config import ChatTemplate
from mod_edge.model.presets import preset_config
from mod_edge.plan.chat import TEMPLATES, ids_of_parts, parts_of_string
from mod_edge.plan.protocol import Decision, Protocol, text_minimum
from mod_edge.plan.tokenizer import prepared, preset_tokenizer, text_ids
from tests.chat_folders import (
    END_OF_TURN,
    chat_tokenizer,
    in_chat_template,
    judge_of,
    judged_ids,
)

STREAM = preset_config("tiny").stream_config
SYSTEM = "You watch: répondez, 東京!"
QUESTION, ANSWER, FURTHER = "What is  the capital of France?", "Paris, I think.", "And\n\nnow? 🙂"


@pytest.fixture(params=["chatml", "llama3"])
def name(request):
    return request.param


@pytest.fixture
def tokenizer(name):
    return prepared(chat_tokenizer(name))


@pytest.fixture
def stream(name, tokenizer):
    return in_chat_template(replace(STREAM, system_prompt=SYSTEM), name, tokenizer)


@pytest.fixture
def protocol(stream, tokenizer):
    return Protocol(stream, tokenizer, threshold=0.725)


# ---- text alone ----


def test_a_prompt_of_text_alone_is_that_of_transformers(protocol, name):
    judge = judge_of(chat_tokenizer(name), name)
    assert protocol.text_prompt(QUESTION) == judged_ids(judge, SYSTEM, QUESTION)


def test_a_second_turn_of_text_alone_is_that_of_transformers(protocol, stream, name):
    judge = judge_of(chat_tokenizer(name), name)
    fed = protocol.text_prompt(QUESTION)
    *said, end = protocol.reply_ids(ANSWER)
    protocol.note_reply([end])
    fed += said + protocol.text_prompt(FURTHER)
    assert fed == judged_ids(judge, SYSTEM, QUESTION, ANSWER, FURTHER)
    assert end == stream.eos_token_id


def test_a_plain_prompt_of_text_alone_has_no_brackets():
    tokenizer = prepared(chat_tokenizer("chatml"))
    protocol = Protocol(STREAM, tokenizer, threshold=0)
    prompt = text_ids(tokenizer, f"{STREAM.system_prompt}\n\nUser: {QUESTION}\nAssistant:")
    for _ in range(2):  # reading ids does not change the state
        assert protocol.text_prompt(QUESTION) == [STREAM.bos_token_id, *prompt]
    protocol.note_reply([STREAM.eos_token_id])
    further = text_ids(tokenizer, f"\nUser: {FURTHER}\nAssistant:")
    assert protocol.text_prompt(FURTHER) == [STREAM.eos_token_id, *further]


def test_a_plain_reply_ends_at_the_next_turns_text(name, protocol, tokenizer):
    plain = Protocol(STREAM, tokenizer, threshold=0)
    assert plain.next_turn == "\nUser:"
    assert plain.stop_ids == {STREAM.eos_token_id}
    assert protocol.next_turn is None
    first = {"chatml": "<|im_start|>", "llama3": "<|start_header_id|>"}[name]
    assert protocol.stop_ids == {
        tokenizer.token_to_id(END_OF_TURN[name]),
        tokenizer.token_to_id(first),
    }


def test_further_stop_tokens_end_a_reply_too(stream, tokenizer):
    protocol = Protocol(replace(stream, stop_token_ids=(300, 301)), tokenizer, threshold=0)
    assert {300, 301, stream.eos_token_id} <= protocol.stop_ids


# ---- streams ----

WRITTEN = {
    "chatml": [
        "<|im_start|>system\n{system}<|im_end|>\n[",
        "]\n<|im_start|>user\n{query}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n[",
        "]\n<|im_start|>assistant\n",
        "<|im_end|>\n<|im_start|>user\n{query}<|im_end|>\n<|im_start|>assistant\n",
    ],
    "llama3": [
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>[",
        "]\n<|start_header_id|>user<|end_header_id|>\n\n{query}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>[",
        "]\n<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{query}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ],
}


def test_a_stream_is_its_written_text_with_control_tokens_by_id(protocol, stream, name):
    end = stream.eos_token_id
    ours = [protocol.frame_prefix()]
    protocol.note_frame()
    ours.append(protocol.response_prompt(QUESTION))
    assert protocol.query_ids(QUESTION) == ours[-1]
    protocol.note_reply([end])
    ours.append(protocol.frame_prefix())
    assert protocol.longest_prefix() == len(ours[-1]) + 1  # a cut reply's last token
    protocol.note_frame()
    ours.append(protocol.response_prompt(None))
    protocol.note_reply([end])
    ours.append(protocol.response_prompt(QUESTION))

    judge = chat_tokenizer(name)  # matches control tokens in text
    texts = [text.format(system=SYSTEM, query=QUESTION) for text in WRITTEN[name]]
    assert ours == [judge.encode(text, add_special_tokens=False).ids for text in texts]


def test_the_prompt_after_frames_begins_with_the_predicted_token(protocol, stream):
    protocol.note_frame()
    logits = np.zeros(700, np.float32)
    logits[stream.stream_end_id] = 9
    assert protocol.decide(logits) is Decision.SPEAK
    for query in (None, QUESTION):
        assert protocol.response_prompt(query)[0] == stream.stream_end_id


def test_an_empty_reply_is_the_end_token_alone(protocol, stream):
    assert protocol.reply_ids("") == [stream.eos_token_id]


def test_control_tokens_that_people_write_are_text(stream, tokenizer, name):
    control = TEMPLATES[name].control_tokens
    control_ids = {tokenizer.token_to_id(token) for token in control}
    written = "a" + "".join(control) + "{query}b"
    protocol = Protocol(replace(stream, system_prompt=written), tokenizer, threshold=0)
    assert tokenizer.decode(protocol.reply_ids(written)) == written  # without control tokens
    prompt = protocol.text_prompt(written)
    assert tokenizer.decode(prompt).count(written) == 2
    num_control = [
        sum(each in control_ids for each in ids) for ids in (prompt, protocol.text_prompt("q"))
    ]
    assert num_control[0] == num_control[1] > 0


def test_a_control_token_whose_name_begins_with_anothers_is_found():
    ids = {"<a>": 1, "<a>b": 2}
    assert parts_of_string("x<a>b<a>{query}", ids, query="<a>") == ["x", 2, 1, "<a>"]


def test_texts_side_by_side_are_encoded_as_one(tokenizer):
    assert ids_of_parts(tokenizer, ["]", "\n", 7, 8, "]"]) == [
        *text_ids(tokenizer, "]\n"),
        7,
        8,
        *text_ids(tokenizer, "]"),
    ]


def test_braces_in_a_template_are_text(tokenizer):
    template = ChatTemplate(query="\n{{x}} {query} {}", system="{system}{")
    protocol = Protocol(replace(STREAM, chat_template=template), tokenizer, threshold=0)
    assert protocol.query_ids("q") == text_ids(tokenizer, "]\n{{x}} q {}\nAssistant:")


def test_every_window_has_room_for_an_instruction_whatever_the_template(stream, tokenizer):
    def room(stream):
        protocol = Protocol(stream, tokenizer, threshold=0)
        own = len(protocol.opening_ids()) + len(protocol.query_ids(""))
        return text_minimum(stream, tokenizer, max_new_tokens=0) - own

    wordy = replace(stream.chat_template, query="\n" + "word " * 90 + "{query}")
    assert room(replace(stream, chat_template=wordy)) == room(stream) == room(STREAM) > 50


# ---- replies that training data writes ----

PRESET = preset_tokenizer(600)


@given(st.text(min_size=1))
def test_a_plain_reply_is_its_text_after_a_space(reply):
    ids = Protocol(STREAM, PRESET, threshold=0).reply_ids(reply)
    assert ids == [*text_ids(PRESET, f" {reply}"), STREAM.eos_token_id]
