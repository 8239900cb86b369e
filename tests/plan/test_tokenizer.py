"""The presets' tokenizer, and the streaming protocol's requirements on any tokenizer."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from mod_edge.config import read_config
from mod_edge.errors import CheckpointError
from mod_edge.model.presets import preset_config
from mod_edge.model.shipped import FOLDER
from mod_edge.plan.chat import TEMPLATES
from mod_edge.plan.tokenizer import (
    BOS,
    EOS,
    INTERVAL,
    STREAM_END,
    SYSTEM_PROMPT,
    preset_tokenizer,
    read_tokenizer,
    text_ids,
)
from tests.frame_layouts import without_interval

VOCAB_SIZE = 512


@pytest.fixture(scope="module")
def tokenizer():
    """The tiny preset's."""
    return preset_tokenizer(VOCAB_SIZE)


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", [INTERVAL, STREAM_END])
def test_every_protocol_string_is_one_token(tokenizer, text):
    (token_id,) = ids_of(tokenizer, text)
    assert tokenizer.decode([token_id], skip_special_tokens=False) == text


@pytest.mark.parametrize("text", [BOS, EOS])
def test_a_control_token_is_a_number_and_its_text_is_text(tokenizer, text):
    token_id = tokenizer.token_to_id(text)
    assert tokenizer.decode([token_id], skip_special_tokens=False) == text
    assert tokenizer.decode([token_id]) == ""
    assert token_id not in ids_of(tokenizer, text)
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


def test_the_protocol_strings_are_one_token_in_context(tokenizer):
    interval, end = ids_of(tokenizer, INTERVAL), ids_of(tokenizer, STREAM_END)
    assert ids_of(tokenizer, "]\nUser: What?\nAssistant:")[:1] == end
    assert ids_of(tokenizer, "]\nAssistant:")[:1] == end
    assert interval != end


@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE, 700])
def test_every_id_decodes_to_text(vocab_size):
    tokenizer = preset_tokenizer(vocab_size)
    assert tokenizer.get_vocab_size() == vocab_size
    for token_id in range(vocab_size):
        assert tokenizer.decode([token_id], skip_special_tokens=False), token_id
    assert tokenizer.decode([vocab_size - 1]) == f" <{vocab_size - 1}>"


@pytest.mark.parametrize(
    "text",
    [
        f"{SYSTEM_PROMPT}\n\n[",
        "]\nUser: Where is the man?\nAssistant: Near the lamp post, on the path.",
        "Grüße, 東京! 🙂\t2024-05-06 \r\n",
        "",
    ],
)
def test_text_is_decoded_unchanged(tokenizer, text):
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


def test_the_same_size_makes_the_same_file():
    assert preset_tokenizer(600).to_str() == preset_tokenizer(600).to_str()


def test_the_presets_tokenizer_fits_the_presets_config(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    read = read_tokenizer(path, preset_config("tiny"))
    assert read.to_str() == Tokenizer.from_file(str(path)).to_str()


def test_an_empty_interval_needs_no_token(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    config = without_interval(preset_config("tiny"))
    read_tokenizer(path, config)
    stream = replace(config.stream_config, stream_end_id=7)
    with pytest.raises(CheckpointError, match=r"stream_end '\]\\n' is tokens .* wants \[7\]"):
        read_tokenizer(path, replace(config, stream_config=stream))


def test_all_faults_are_named_at_once(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    config = preset_config("tiny")
    stream = replace(config.stream_config, frame_token_interval=" , and", stream_end_id=7)
    text = replace(config.text_config, vocab_size=500)
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(path, replace(config, stream_config=stream, text_config=text))
    message = str(caught.value)
    assert message.startswith(f"{path} does not fit config.json: ")
    assert "frame_token_interval ' , and' is tokens [" in message
    assert f"stream_end ']\\n' is tokens [{config.stream_config.stream_end_id}]" in message
    assert "config.json wants [7]" in message
    assert "vocab_size is 500, wanted ids below it for all tokens: 'Ġ<500>' is 500; " in message
    assert message.endswith("'Ġ<504>' is 504; and 7 more")


@pytest.mark.parametrize(
    "content",
    [
        *("", "{}", '{"model": 1}', "not JSON"),
        pytest.param('{"version": "1.0", "normalizer": ' + "[" * 100_000, id="brackets"),
        pytest.param('{"version": "1.0", "truncation": ' + "9" * 400 + "}", id="digits"),
    ],
)
def test_a_file_that_is_not_a_tokenizer_is_a_checkpoint_error(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"cannot be read as a tokenizer\.json"):
        read_tokenizer(path, preset_config("tiny"))


def added_token(token_id, content, *, special):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": special, **flags}


@pytest.fixture
def change(tokenizer, tmp_path):
    """`change(edit)`: the path of the tokenizer's file after `edit(document)`."""

    def write(edit):
        document = json.loads(tokenizer.to_str())
        edit(document)
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(document))
        return path

    return write


# ---- ids and the embedding's rows ----


def test_added_tokens_count_as_vocabulary(change):
    path = change(
        lambda document: document["added_tokens"].append(
            added_token(VOCAB_SIZE, "<v>", special=True)
        )
    )
    with pytest.raises(CheckpointError, match=r"vocab_size is 512, .*: '<v>' is 512$"):
        read_tokenizer(path, preset_config("tiny"))


def test_an_id_beyond_the_embedding_is_named_although_a_hole_keeps_the_count_low(change):
    def edit(document):
        vocabulary = document["model"]["vocab"]
        for number, token_id in ((500, 513), (501, 2**20), (502, VOCAB_SIZE)):
            del vocabulary[f"Ġ<{number}>"]
            vocabulary[f"Ġ<{token_id}>"] = token_id

    path = change(edit)
    assert Tokenizer.from_file(str(path)).get_vocab_size() == VOCAB_SIZE
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(path, preset_config("tiny"))
    assert "'Ġ<512>' is 512; 'Ġ<513>' is 513; 'Ġ<1048576>' is 1048576" in str(caught.value)


def test_fewer_tokens_than_rows_and_holes_within_them_are_normal(change):
    def edit(document):
        for token_id in (490, *range(500, VOCAB_SIZE)):
            del document["model"]["vocab"][f"Ġ<{token_id}>"]

    read = read_tokenizer(change(edit), preset_config("tiny"))
    assert read.get_vocab_size() == VOCAB_SIZE - 13
    assert read.decode([490, 511]) == ""


# ---- settings that training leaves in the file ----

TRUNCATION = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    **{"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": 8},
    **{"pad_id": 0, "pad_type_id": 0, "pad_token": BOS},
}
ADDS_BOS = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": BOS, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {BOS: {"id": BOS, "ids": [0], "tokens": [BOS]}},
}


@pytest.mark.parametrize(
    "settings",
    [
        {"truncation": TRUNCATION},
        {"padding": PADDING},
        {"truncation": TRUNCATION, "padding": PADDING},
        {"padding": PADDING | {"strategy": "BatchLongest", "pad_to_multiple_of": 64}},
        {"post_processor": ADDS_BOS},
        {"truncation": TRUNCATION, "padding": PADDING, "post_processor": ADDS_BOS},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_a_text_is_encoded_whole_and_alone_whatever_the_file_says(tokenizer, change, settings):
    read = read_tokenizer(change(lambda document: document.update(settings)), preset_config("tiny"))
    for text in (SYSTEM_PROMPT, ",", "", "A man walks."):
        assert text_ids(read, text) == ids_of(tokenizer, text)


def test_bpe_dropout_is_switched_off(tokenizer, change):
    path = change(lambda document: document["model"].update(dropout=0.9))
    read = read_tokenizer(path, preset_config("tiny"))
    assert {tuple(text_ids(read, SYSTEM_PROMPT)) for _ in range(20)} == {
        tuple(ids_of(tokenizer, SYSTEM_PROMPT))
    }


# ---- control tokens in what people write ----

PARTS = (BOS, EOS, "<|", "|>", "eot_id", " ", "\n", ",", "]", "a")


@given(st.lists(st.sampled_from(PARTS) | st.text()).map("".join))
def test_no_text_becomes_a_control_token_or_loses_a_character(tokenizer, text):
    ids = text_ids(tokenizer, text)
    assert not {0, 1} & set(ids)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("special", [True, False])
def test_the_protocols_tokens_are_not_matched_however_the_file_marks_them(change, special):
    def edit(document):
        document["added_tokens"] = [
            added_token(0, BOS, special=special),
            added_token(1, EOS, special=special),
        ]

    read = read_tokenizer(change(edit), preset_config("tiny"))
    ids = text_ids(read, f"a{EOS}b{BOS}")
    assert not {0, 1} & set(ids)
    assert read.decode([*ids, 1]) == f"a{EOS}b{BOS}"


def test_added_tokens_that_are_not_special_stay_tokens_of_the_text(change):
    def edit(document):
        del document["model"]["vocab"]["Ġ<511>"]
        document["added_tokens"].append(added_token(511, "    ", special=False))

    assert text_ids(read_tokenizer(change(edit), preset_config("tiny")), "    ") == [511]


def test_a_tokenizer_whose_text_becomes_a_control_token_all_the_same_is_refused(tmp_path):
    words = WordLevel({BOS: 0, EOS: 1, INTERVAL: 2, STREAM_END: 3}, unk_token=BOS)
    tokenizer = Tokenizer(words)
    tokenizer.add_special_tokens([BOS, EOS])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    config = preset_config("tiny")
    stream = replace(config.stream_config, frame_token_interval_id=2, stream_end_id=3)
    with pytest.raises(CheckpointError, match=r"the text '<\|eot_id\|>' is control token 1"):
        read_tokenizer(path, replace(config, stream_config=stream))


@pytest.fixture(scope="module")
def bundled():
    """The bundled model's tokenizer as it is read, and as its file alone makes it."""
    path = FOLDER / "tokenizer.json"
    read = read_tokenizer(path, read_config(FOLDER / "config.json"))
    return read, Tokenizer.from_file(str(path))


@given(st.text().filter(lambda text: BOS not in text and EOS not in text))
def test_the_bundled_models_ordinary_text_is_encoded_as_its_file_alone_says(bundled, text):
    read, alone = bundled
    assert text_ids(read, text) == ids_of(alone, text)


def test_a_chat_template_whose_control_tokens_are_missing_is_refused_by_name(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    config = preset_config("tiny")
    stream = replace(config.stream_config, chat_template=TEMPLATES["chatml"])
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(path, replace(config, stream_config=stream))
    assert "no added token '<|im_start|>', a control token of the chat template" in str(
        caught.value
    )
    assert "no added token '<|im_end|>', " in str(caught.value)


@pytest.mark.parametrize("special", [True, False])
def test_a_chat_templates_control_tokens_are_not_matched_in_text(change, special):
    control = TEMPLATES["chatml"].control_tokens

    def edit(document):
        for token_id, token in zip((510, 511), control, strict=True):
            del document["model"]["vocab"][f"Ġ<{token_id}>"]
            document["added_tokens"].append(added_token(token_id, token, special=special))

    path, config = change(edit), preset_config("tiny")
    stream = replace(config.stream_config, chat_template=TEMPLATES["chatml"])
    read = read_tokenizer(path, replace(config, stream_config=stream))
    assert not {510, 511} & set(text_ids(read, "a".join(control)))
