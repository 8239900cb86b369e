"""The presets' tokenizer, and the streaming protocol's requirements on any tokenizer."""

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from mod_edge.errors import CheckpointError
from mod_edge.model.presets import preset_config
from mod_edge.plan.tokenizer import (
    BOS,
    EOS,
    INTERVAL,
    STREAM_END,
    SYSTEM_PROMPT,
    preset_tokenizer,
    read_tokenizer,
)

VOCAB_SIZE = 512


@pytest.fixture(scope="module")
def tokenizer():
    """The tiny preset's."""
    return preset_tokenizer(VOCAB_SIZE)


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", [INTERVAL, STREAM_END, BOS, EOS])
def test_every_protocol_string_is_one_token(tokenizer, text):
    (token_id,) = ids_of(tokenizer, text)
    assert tokenizer.decode([token_id], skip_special_tokens=False) == text


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
    assert "it has 512 tokens, vocab_size is 500" in message


@pytest.mark.parametrize("content", ["", "{}", '{"model": 1}', "not JSON"])
def test_a_file_that_is_not_a_tokenizer_is_a_checkpoint_error(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"cannot be read as a tokenizer\.json"):
        read_tokenizer(path, preset_config("tiny"))


def test_added_tokens_count_as_vocabulary(tokenizer, tmp_path):
    document = json.loads(tokenizer.to_str())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    frame = {"id": VOCAB_SIZE, "content": "<v>", "special": True, **flags}
    document["added_tokens"].append(frame)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="it has 513 tokens, vocab_size is 512"):
        read_tokenizer(path, preset_config("tiny"))
