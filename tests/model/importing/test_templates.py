"""The protocol of an imported model: its folder's chat template, strings and end tokens."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from mod_edge.config import ChatTemplate
from mod_edge.errors import CheckpointError, ConfigError
from mod_edge.model.importing.templates import stream_config_for
from mod_edge.model.importing.tokenizer import imported_tokenizer
from mod_edge.plan.chat import TEMPLATES
from mod_edge.plan.protocol import Protocol
from mod_edge.plan.tokenizer import EOS, SYSTEM_PROMPT, preset_tokenizer, text_ids
from tests.byte_fallback import CORPUS, byte_fallback_tokenizer
from tests.chat_folders import (
    BOS_TOKEN,
    CHATML,
    END_OF_TURN,
    chat_tokenizer,
    judge_of,
    judged_ids,
    write_folder,
)

QUESTION, ANSWER, FURTHER = "What is  the capital?", "Paris.", "And\nnow? 🙂"
SMOLLM2 = "MOD_EDGE_REAL_LLM"  # environment variable: a folder of SmolLM2-135M-Instruct


@pytest.fixture(params=["chatml", "llama3"])
def name(request):
    return request.param


def stream_of(folder, config, template="auto"):
    """The protocol, the tokenizer and the notes."""
    tokenizer, notes = imported_tokenizer(folder, config), []
    stream = stream_config_for(tokenizer, folder, config, template, note=notes.append)
    return stream, tokenizer, notes


def refusal(folder, config, template="auto", error=ConfigError):
    with pytest.raises(error) as caught:
        stream_of(folder, config, template)
    return str(caught.value)


# ---- the folder's own template ----


def test_auto_takes_the_folders_own_template(tmp_path, name):
    config = write_folder(tmp_path, name)
    stream, tokenizer, notes = stream_of(tmp_path, config)
    assert stream.chat_template == TEMPLATES[name]
    bos = BOS_TOKEN[name]
    assert stream.bos_token_id == (bos and tokenizer.token_to_id(bos))
    assert stream.eos_token_id == tokenizer.token_to_id(END_OF_TURN[name])
    assert (stream.frame_token_interval, stream.stream_end) == (",", "]\n")
    assert text_ids(tokenizer, ",") == [stream.frame_token_interval_id]
    assert text_ids(tokenizer, "]\n") == [stream.stream_end_id]
    assert notes == [
        f"chat template: {name}, the folder's own",
        f"silent is ',', speak is ']\\n', a reply ends with {END_OF_TURN[name]!r}",
    ]


def test_auto_prompts_as_transformers_with_the_folders_own_template(tmp_path, name):
    stream, tokenizer, _ = stream_of(tmp_path, write_folder(tmp_path, name))
    judge = judge_of(chat_tokenizer(name), name)
    protocol = Protocol(stream, tokenizer, threshold=0)
    fed = protocol.text_prompt(QUESTION)
    assert fed == judged_ids(judge, stream.system_prompt, QUESTION)
    *said, end = protocol.reply_ids(ANSWER)
    protocol.note_reply([end])
    fed += [*said, *protocol.text_prompt(FURTHER)]
    assert fed == judged_ids(judge, stream.system_prompt, QUESTION, ANSWER, FURTHER)


def test_the_system_prompt_is_the_templates_own_if_it_has_one(tmp_path, name):
    stream, _, _ = stream_of(tmp_path, write_folder(tmp_path, name))
    own = {"chatml": "You are a helpful assistant.", "llama3": SYSTEM_PROMPT}
    assert stream.system_prompt == own[name]


@pytest.mark.parametrize(
    "written",
    [CHATML, [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]],
)
def test_older_folders_have_the_template_in_the_tokenizers_config(tmp_path, written):
    settings = {"chat_template": written, "eos_token": {"content": "<|im_end|>", "lstrip": False}}
    config = write_folder(tmp_path, "chatml", template=False, settings=settings)
    stream, _, _ = stream_of(tmp_path, config)
    assert stream.chat_template == TEMPLATES["chatml"]


def test_a_template_may_mark_what_the_model_says(tmp_path):
    said = "message['content'] + '<|im_end|>' + '\n'}}"
    marked = CHATML.replace(f"+ {said}", "}}{% generation %}{{" + said + "{% endgeneration %}")
    assert marked != CHATML
    stream, _, _ = stream_of(tmp_path, write_folder(tmp_path, "chatml", template=marked))
    assert stream.chat_template == TEMPLATES["chatml"]


def test_a_bos_token_that_opens_the_system_turn_is_fed_once(tmp_path):
    settings = {"bos_token": "<|im_start|>"}  # as SmolLM2 has it
    config = write_folder(tmp_path, "chatml", settings=settings)
    stream, tokenizer, _ = stream_of(tmp_path, config)
    ids = Protocol(stream, tokenizer, threshold=0).text_prompt(QUESTION)
    judge = judge_of(chat_tokenizer("chatml"), "chatml")
    assert ids == judged_ids(judge, stream.system_prompt, QUESTION)
    assert stream.bos_token_id is None


def test_a_bos_token_before_the_system_turn_is_fed(tmp_path):
    settings = {"bos_token": EOS}
    config = write_folder(
        tmp_path, "chatml", template="{{ bos_token }}" + CHATML, settings=settings
    )
    stream, tokenizer, notes = stream_of(tmp_path, config)
    assert stream.bos_token_id == tokenizer.token_to_id(EOS)
    assert stream.system_prompt == "You are a helpful assistant."
    assert notes[0] == "chat template: chatml, the folder's own"


def test_a_fixed_text_before_the_system_prompt_is_kept(tmp_path):
    """Llama 3.1 and later begin the system turn with dates, which are fixed without a clock."""
    dates = "Cutting Knowledge Date: December 2023\nToday Date: "
    source = (
        "{% if strftime_now is defined %}{% set date = strftime_now('%d %b %Y') %}"
        "{% else %}{% set date = '26 Jul 2024' %}{% endif %}{{ bos_token }}"
        "{{ '<|start_header_id|>system<|end_header_id|>\n\n" + dates + "' + date + '\n\n' }}"
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
        "{% set messages = messages[1:] %}{% endif %}{{ '<|eot_id|>' }}"
        "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}{% endfor %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    )
    stream, tokenizer, notes = stream_of(
        tmp_path, write_folder(tmp_path, "llama3", template=source)
    )
    assert stream.system_prompt == SYSTEM_PROMPT
    assert notes[0] == "chat template: llama3, the folder's own"
    ids = Protocol(stream, tokenizer, threshold=0).text_prompt(QUESTION)
    system = f"{dates}26 Jul 2024\n\n{SYSTEM_PROMPT}"
    assert ids == judged_ids(judge_of(chat_tokenizer("llama3"), "llama3"), system, QUESTION)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (False, "the folder has none"),
        (CHATML.replace("user", "x").replace("+ '\n' +", "+ ': ' +"), "is none of chatml, llama3"),
        ("{% for", "cannot be rendered (TemplateSyntaxError: "),
        ("{{ raise_exception('no system role') }}", "rendered (ValueError: no system role)"),
        ("{{ messages.x.y }}", "cannot be rendered (UndefinedError: "),
        ("{{ ''.__class__.__mro__ }}", "cannot be rendered (SecurityError: "),
        (CHATML.replace("<|im_end|>", " "), "is none of chatml, llama3"),
    ],
)
def test_auto_takes_plain_for_another_template_and_says_why(tmp_path, source, reason):
    config = write_folder(tmp_path, "llama3", template=source)
    stream, tokenizer, notes = stream_of(tmp_path, config)
    assert stream.chat_template == ChatTemplate()
    assert stream.system_prompt == SYSTEM_PROMPT
    assert stream.bos_token_id == tokenizer.token_to_id(BOS_TOKEN["llama3"])
    assert notes[0].startswith("chat template: plain, because the folder")
    assert reason in notes[0]


def test_a_template_whose_control_tokens_the_tokenizer_lacks_is_not_taken(tmp_path):
    _, _, notes = stream_of(tmp_path, write_folder(tmp_path, "llama3", template=CHATML))
    assert "plain, because template chatml: the tokenizer has no token '<|im_end|>'" in notes[0]


def test_a_template_that_the_tokenizer_splits_otherwise_is_not_taken(tmp_path):
    tokenizer = preset_tokenizer(600)
    tokenizer.encode_special_tokens = False
    # Takes the line break after it too, wherever control tokens are matched in a text.
    tokenizer.add_special_tokens(["<|im_start|>", AddedToken("<|im_end|>", rstrip=True)])
    config = write_folder(tmp_path, "chatml", tokenizer=tokenizer)
    _, _, notes = stream_of(tmp_path, config)
    assert "plain, because the tokenizer splits the folder's own otherwise" in notes[0]


# ---- silent and speak strings ----


def without_speak_token():
    """A tokenizer without a token for "]" and a line break, as SmolLM2's."""
    tokenizer = chat_tokenizer("chatml")
    document = json.loads(tokenizer.to_str())
    model = document["model"]
    merges = [merge for merge in model["merges"] if merge != ["]", "Ċ"]]
    assert len(merges) == len(model["merges"]) - 1
    model["merges"] = merges
    return Tokenizer.from_str(json.dumps(document))


def test_auto_picks_the_first_strings_that_are_one_token(tmp_path):
    config = write_folder(tmp_path, "chatml", tokenizer=without_speak_token())
    stream, tokenizer, notes = stream_of(tmp_path, config)
    assert (stream.frame_token_interval, stream.stream_end) == (",", "]")
    assert notes[1].startswith("silent is ',', speak is ']', ")
    protocol = Protocol(stream, tokenizer, threshold=0)
    protocol.note_frame()
    assert protocol.response_prompt(None)[0] == stream.stream_end_id


@pytest.mark.parametrize("template", ["plain", "chatml"])
def test_a_named_template_whose_strings_are_not_one_token_is_refused_with_candidates(
    tmp_path, template
):
    config = write_folder(tmp_path, "chatml", tokenizer=without_speak_token())
    assert refusal(tmp_path, config, template).startswith(
        f"template {template}: stream_end ']\\n' is 2 tokens, wanted one; strings that are: ']', "
    )


def test_a_named_template_without_its_control_tokens_is_refused_with_those_that_fit(tmp_path):
    config = write_folder(tmp_path, "chatml")
    assert refusal(tmp_path, config, "llama3") == (
        "template llama3: the tokenizer has no token '<|end_header_id|>', '<|start_header_id|>'; "
        "templates that fit it: plain, chatml"
    )


def word_level(*words):
    """A tokenizer of whole words and punctuation, all others unknown."""
    vocabulary = {word: number for number, word in enumerate(("<unk>", "</s>", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


def write_word_level(folder, *words):
    return write_folder(
        folder,
        "chatml",
        tokenizer=word_level(*words),
        template=False,
        config={"eos_token_id": 1},
        settings={"eos_token": "</s>"},
    )


def test_a_string_of_unknown_characters_is_not_taken(tmp_path):
    stream, tokenizer, _ = stream_of(tmp_path, write_word_level(tmp_path, ";", "]"))
    assert (stream.frame_token_interval, stream.stream_end) == (";", "]")
    assert tokenizer.decode([stream.silent_id, stream.stream_end_id]) == "; ]"


def test_a_tokenizer_without_any_of_the_strings_is_refused(tmp_path):
    says = refusal(tmp_path, write_word_level(tmp_path, "]"))
    assert says == (
        "template plain: frame_token_interval: the tokenizer has one token for none of ',', ' ,', "
        "';', ' ;', '|', ' |', '.'; set such strings in a template file"
    )


# ---- named templates ----


def test_a_named_template_has_the_published_strings(tmp_path, name):
    config = write_folder(tmp_path, name, template=False)
    stream, tokenizer, notes = stream_of(tmp_path, config, name)
    assert stream.chat_template == TEMPLATES[name]
    assert (stream.frame_token_interval, stream.stream_end) == (",", "]\n")
    assert stream.eos_token_id == tokenizer.token_to_id(END_OF_TURN[name])
    assert stream.system_prompt == SYSTEM_PROMPT
    assert notes[0] == f"chat template: {name}"


def test_plain_feeds_the_published_ids_although_the_folder_has_another_template(tmp_path):
    stream, tokenizer, _ = stream_of(tmp_path, write_folder(tmp_path, "llama3"), "plain")
    bos, eos = (tokenizer.token_to_id(each) for each in (BOS_TOKEN["llama3"], EOS))
    assert (stream.bos_token_id, stream.eos_token_id) == (bos, eos)
    opening = Protocol(stream, tokenizer, threshold=0).opening_ids()
    assert opening == [bos, *text_ids(tokenizer, f"{SYSTEM_PROMPT}\n\n[")]


# ---- end tokens, and the first one ----


def test_all_tokens_that_the_folder_names_end_a_reply_and_a_turns_own_is_fed(tmp_path):
    tokenizer = chat_tokenizer("llama3")
    tokenizer.add_special_tokens(["<|end_of_text|>", "<|eom_id|>"])
    text_end, eom, eot = (
        tokenizer.token_to_id(token) for token in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
    )
    config = write_folder(
        tmp_path,
        "llama3",
        tokenizer=tokenizer,
        config={"eos_token_id": [text_end, eom]},
        settings={"eos_token": "<|end_of_text|>"},
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [eom, eot]}))
    for template in ("auto", "llama3", "plain"):
        stream, _, notes = stream_of(tmp_path, config, template)
        assert stream.eos_token_id == eot
        assert stream.stop_token_ids == (text_end, eom)
        assert "'<|eot_id|>' or '<|end_of_text|>' or '<|eom_id|>'" in notes[1]


def test_the_tokenizers_config_may_say_that_there_is_no_bos_token(tmp_path):
    config = write_folder(tmp_path, "chatml", template=False, config={"bos_token_id": 0})
    assert stream_of(tmp_path, config)[0].bos_token_id is None
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert stream_of(tmp_path, config)[0].bos_token_id == 0


def test_a_base_model_may_have_one_token_for_both_ends(tmp_path):
    settings = {"bos_token": EOS, "eos_token": EOS}
    config = write_folder(tmp_path, "llama3", template=False, settings=settings)
    stream, _, _ = stream_of(tmp_path, config)
    assert stream.bos_token_id == stream.eos_token_id


def test_a_folder_that_names_no_end_token_is_refused(tmp_path):
    config = write_folder(tmp_path, "chatml", config={"eos_token_id": None})
    (tmp_path / "tokenizer_config.json").unlink()
    says = refusal(tmp_path, config, error=CheckpointError)
    assert says == (
        f"{tmp_path}: no end token: neither eos_token in tokenizer_config.json nor eos_token_id in "
        "config.json or generation_config.json; add eos_token_id to config.json"
    )


def test_all_tokens_that_do_not_exist_are_named_at_once(tmp_path):
    settings = {"eos_token": "<none>", "bos_token": "<s>"}
    config = write_folder(tmp_path, "chatml", config={"eos_token_id": [9999, 1]}, settings=settings)
    says = refusal(tmp_path, config, error=CheckpointError)
    for fault in (
        "bos_token='<s>' of tokenizer_config.json is not a token",
        "eos_token='<none>' of tokenizer_config.json is not a token",
        "eos_token_id=[9999, 1] of config.json, wanted ids of tokens",
    ):
        assert fault in says


# ---- template files ----

COLONS = {
    "system": "<|im_start|>system: {system}<|im_end|>\n",
    "stream_start": "[",
    "query": "<|im_start|>user: {query}<|im_end|>\n",
    "generation": "<|im_start|>assistant:",
    "control_tokens": ["<|im_start|>", "<|im_end|>"],
}


def written(folder, document, suffix="json"):
    path = folder / f"template.{suffix}"
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in document.items()]
    path.write_text(json.dumps(document) if suffix == "json" else "".join(lines))
    return path


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_a_template_file_has_the_fields_of_a_chat_template(tmp_path, suffix):
    config = write_folder(tmp_path, "chatml")
    further = {"stream_end": "]\n", "frame_token_interval": ".", "end_of_turn": "<|im_start|>"}
    path = written(tmp_path, COLONS | further, suffix)
    stream, tokenizer, notes = stream_of(tmp_path, config, path)
    control = tuple(COLONS["control_tokens"])
    assert stream.chat_template == ChatTemplate(**COLONS | {"control_tokens": control})
    assert type(stream.chat_template) is ChatTemplate
    assert (stream.frame_token_interval, stream.stream_end) == (".", "]\n")
    assert tokenizer.id_to_token(stream.eos_token_id) == "<|im_start|>"
    assert notes[0] == f"chat template: {path}"


def test_a_template_file_may_leave_the_strings_to_the_list(tmp_path):
    config = write_folder(tmp_path, "chatml", tokenizer=without_speak_token())
    stream, tokenizer, _ = stream_of(tmp_path, config, str(written(tmp_path, COLONS)))
    assert (stream.frame_token_interval, stream.stream_end) == (",", "]")
    assert tokenizer.id_to_token(stream.eos_token_id) == "<|im_end|>"


# Zephyr's template, as its public documentation has it, and the same as a template file.
ZEPHYR = (
    "{% for message in messages %}\n"
    "{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
ZEPHYR_FILE = {
    "system": "<|system|>\n{system}</s>",
    "stream_start": "\n[",
    "query": "\n<|user|>\n{query}</s>",
    "generation": "\n<|assistant|>\n",
    "reply": "{reply}",
    "control_tokens": ["</s>"],
}


def test_a_template_file_prompts_as_transformers_with_that_template(tmp_path):
    from transformers import PreTrainedTokenizerFast

    # A corpus that makes the protocol's strings tokens after a dummy space.
    tokenizer = byte_fallback_tokenizer(90, corpus=[*CORPUS, *["[ , , ]"] * 9])
    judge = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=ZEPHYR, eos_token="</s>", bos_token="<s>"
    )
    settings = {"eos_token": "</s>", "bos_token": None}
    options = {"tokenizer": tokenizer, "template": ZEPHYR, "settings": settings}
    config = write_folder(tmp_path, "chatml", config={"eos_token_id": 2}, **options)
    stream, tokenizer, _ = stream_of(tmp_path, config, written(tmp_path, ZEPHYR_FILE, "toml"))
    protocol = Protocol(stream, tokenizer, threshold=0)
    fed = protocol.text_prompt(QUESTION)
    assert fed == judged_ids(judge, stream.system_prompt, QUESTION)
    *said, end = protocol.reply_ids(ANSWER)
    protocol.note_reply([end])
    fed += [*said, *protocol.text_prompt(FURTHER)]
    assert fed == judged_ids(judge, stream.system_prompt, QUESTION, ANSWER, FURTHER)
    assert protocol.next_turn == "\n<|user|>"
    assert protocol.stop_ids == {2}


def test_a_template_file_that_writes_the_bos_token_feeds_it_once(tmp_path):
    for bos, wanted in (("<|im_start|>", None), (EOS, 1)):
        config = write_folder(tmp_path, "chatml", settings={"bos_token": bos})
        stream, _, _ = stream_of(tmp_path, config, written(tmp_path, COLONS))
        assert stream.bos_token_id == wanted


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"query": "no placeholder"}, "chat_template.query='no placeholder', wanted {query} once"),
        ({"sytem": ""}, "unknown field 'sytem' (did you mean 'system'?)"),
        ({"control_tokens": "<|im_end|>"}, "control_tokens='<|im_end|>', wanted a list of strings"),
        ({"control_tokens": ["<|im_start|>"]}, "contain the control tokens '<|im_end|>'; add them"),
        ({"end_of_turn": "<|end|>"}, "the tokenizer has no token '<|end|>'; templates that fit"),
        ({"stream_end": "]]]]"}, "stream_end ']]]]' is 4 tokens, wanted one; strings that are: "),
        ({"frame_token_interval": "] "}, "frame_token_interval '] ' is 2 tokens, wanted one; "),
        ({"frame_token_interval": "]\n", "stream_end": "]\n"}, "are the same token"),
        ({"generation": "\nAssistant:", "stream_end": "]"}, "other tokens than stream_end alone"),
    ],
)
def test_a_faulty_template_file_is_one_clear_error(tmp_path, change, fault):
    config = write_folder(tmp_path, "chatml")
    path = written(tmp_path, COLONS | change)
    says = refusal(tmp_path, config, path)
    assert fault in says
    assert str(path) in says


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("t.json", "{", "is not valid JSON"),
        ("t.toml", "a = ", "is not valid TOML"),
        ("t.json", "[]", "contains a list, wanted an object"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_refused_by_name(tmp_path, name, content, fault):
    config = write_folder(tmp_path, "chatml")
    (tmp_path / name).write_text(content)
    assert f"{tmp_path / name} {fault}" in refusal(tmp_path, config, tmp_path / name)


def test_an_unknown_template_gets_the_known_ones(tmp_path):
    says = refusal(tmp_path, write_folder(tmp_path, "chatml"), "chatm")
    assert "wanted auto, plain, chatml, llama3, or a TOML or JSON file" in says
    assert "did you mean 'chatml'?" in says


# ---- real weights' tokenizer ----


@pytest.mark.slow
def test_smollm2_prompts_as_transformers_does():
    folder = Path(os.environ.get(SMOLLM2, ""))
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"set {SMOLLM2} to a folder of SmolLM2-135M-Instruct")
    from transformers import AutoTokenizer

    config = json.loads((folder / "config.json").read_text())
    stream, tokenizer, notes = stream_of(folder, config)
    assert notes[0] == "chat template: chatml, the folder's own"
    assert notes[1] == "silent is ',', speak is ']', a reply ends with '<|im_end|>'"
    judge = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for system in (stream.system_prompt, "Répondez en 東京 🙂."):
        protocol = Protocol(replace(stream, system_prompt=system), tokenizer, threshold=0)
        fed = protocol.text_prompt(QUESTION)
        assert fed == judged_ids(judge, system, QUESTION)
        *said, end = protocol.reply_ids(ANSWER)
        protocol.note_reply([end])
        fed += [*said, *protocol.text_prompt(FURTHER)]
        assert fed == judged_ids(judge, system, QUESTION, ANSWER, FURTHER)
    without_system = judge.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    assert Protocol(stream, tokenizer, threshold=0).text_prompt(QUESTION) == without_system
