"""Tokenizers of Hugging Face folders: kept, converted exactly, or refused."""

import importlib.util
import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers

from mod_edge.errors import CheckpointError
from mod_edge.model.importing import tokenizer as importing
from mod_edge.model.importing.tokenizer import EXACT_TEXTS, imported_tokenizer
from mod_edge.model.presets import preset_config
from mod_edge.plan.chat import TEMPLATES
from mod_edge.plan.protocol import Protocol
from mod_edge.plan.tokenizer import preset_tokenizer, text_ids
from tests.byte_fallback import byte_fallback_tokenizer
from tests.chat_folders import CHATML, judged_ids

STREAM = preset_config("tiny").stream_config
VOCAB_SIZE = 520  # of the embedding
SYSTEM, QUESTION, ANSWER = "You watch: répondez!", "What is it?  🙂", "The red ball."


def write(folder, tokenizer):
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def imported(folder, vocab_size=VOCAB_SIZE):
    return imported_tokenizer(folder, {"vocab_size": vocab_size})


def with_added(*tokens, special=True):
    """The preset's tokenizer, of 512 tokens, with further ones."""
    tokenizer = preset_tokenizer(512)
    add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
    add(list(tokens))
    return tokenizer


# ---- tokenizer.json ----


def test_a_tokenizer_file_is_kept_as_it_is(tmp_path):
    tokenizer = with_added("<extra>")
    assert imported(write(tmp_path, tokenizer)).to_str() == tokenizer.to_str()


@pytest.mark.parametrize("text", EXACT_TEXTS)
def test_awkward_texts_are_decoded_unchanged(tmp_path, text):
    tokenizer = imported(write(tmp_path, with_added()))
    assert tokenizer.decode(text_ids(tokenizer, text)) == text
    spaces = text.replace("▁", " ")  # the same token in a tokenizer of Llama 2's kind
    tokenizer = imported(write(tmp_path, byte_fallback_tokenizer()))
    assert tokenizer.decode(text_ids(tokenizer, text)) == spaces


def test_special_tokens_beyond_the_embedding_are_left_out(tmp_path):
    folder = write(tmp_path, with_added("<a>", "<v>"))
    tokenizer = imported(folder, 513)
    assert tokenizer.token_to_id("<a>") == 512
    assert tokenizer.token_to_id("<v>") is None
    assert tokenizer.decode(text_ids(tokenizer, "[<v>,")) == "[<v>,"
    assert imported(folder, 514).token_to_id("<v>") == 513


@pytest.mark.parametrize(
    ("tokenizer", "vocab_size", "token"),
    [
        (with_added("    ", special=False), 512, "'    ' is 512"),
        (with_added("<v>"), 500, "'Ġ<500>' is 500"),
    ],
)
def test_other_tokens_beyond_the_embedding_are_refused(tmp_path, tokenizer, vocab_size, token):
    with pytest.raises(CheckpointError) as caught:
        imported(write(tmp_path, tokenizer), vocab_size)
    says = f"the tokenizer of {tmp_path} is larger than the model's embedding: vocab_size is "
    assert str(caught.value).startswith(f"{says}{vocab_size}, ")
    assert token in str(caught.value)


def test_a_tokenizer_that_git_lfs_did_not_fetch_is_refused_with_the_command(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9085657\n"
    (tmp_path / "tokenizer.json").write_text(pointer)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is a git-lfs pointer.*lfs pull"):
        imported(tmp_path)


def test_a_damaged_tokenizer_file_is_refused_by_name(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        imported(tmp_path)


# ---- dummy spaces ----


def with_chatml(tokenizer):
    tokenizer.add_special_tokens(list(TEMPLATES["chatml"].control_tokens))
    return tokenizer


def with_metaspace(scheme):
    tokenizer = byte_fallback_tokenizer()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return tokenizer


KINDS = {
    "a dummy space before every text (Llama 2)": byte_fallback_tokenizer,
    "always": lambda: with_metaspace("always"),
    "first": lambda: with_metaspace("first"),
    "never": lambda: with_metaspace("never"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_turns_have_the_dummy_spaces_of_the_whole_conversation(tmp_path, kind):
    from transformers import PreTrainedTokenizerFast

    judge = PreTrainedTokenizerFast(
        tokenizer_object=with_chatml(KINDS[kind]()), chat_template=CHATML
    )
    tokenizer = imported(write(tmp_path, with_chatml(KINDS[kind]())))
    stream = replace(
        STREAM,
        system_prompt=SYSTEM,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        chat_template=TEMPLATES["chatml"],
    )
    protocol = Protocol(stream, tokenizer, threshold=0)
    fed = protocol.text_prompt(QUESTION)
    assert fed == judged_ids(judge, SYSTEM, QUESTION)
    *said, end = protocol.reply_ids(ANSWER)
    protocol.note_reply([end])
    fed += [*said, *protocol.text_prompt(QUESTION)]
    assert fed == judged_ids(judge, SYSTEM, QUESTION, ANSWER, QUESTION)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_reply_goes_on_with_the_prompts_text(tmp_path, kind):
    tokenizer = imported(write(tmp_path, KINDS[kind]()))
    protocol = Protocol(STREAM, tokenizer, threshold=0)
    whole = text_ids(tokenizer, f"\nUser: {QUESTION}\nAssistant: {ANSWER}")
    prompt = text_ids(tokenizer, f"\nUser: {QUESTION}\nAssistant:")
    assert [*prompt, *protocol.reply_ids(ANSWER)[:-1]] == whole


def test_a_dummy_space_that_is_not_added_is_not_taken_off_either(tmp_path):
    tokenizer = with_metaspace("first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    for decoder in (tokenizer.decoder, byte_fallback_tokenizer().decoder):
        tokenizer.decoder = decoder
        read = imported(write(tmp_path, tokenizer))
        assert read.decode(text_ids(read, " The")) == " The"
        assert read.decode(text_ids(read, "The")) == "The"


# ---- folders of older libraries ----


def test_vocabulary_and_merges_become_what_transformers_makes_of_them(tmp_path):
    from transformers import AutoTokenizer

    model = json.loads(preset_tokenizer(512).to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|eot_id|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = imported(tmp_path)
    judge = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in EXACT_TEXTS:
        assert text_ids(tokenizer, text) == judge(text, add_special_tokens=False).input_ids
    assert tokenizer.token_to_id("<|eot_id|>") == 1


def sentencepiece_folder(folder, **options):
    """A folder of Llama 2's kind without tokenizer.json, and the library's own model of it."""
    import sentencepiece

    corpus = ["Hello world, hello there.", "What? It stops.", "répondez 東京", "[,,]"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(folder / "tokenizer"),
        minloglevel=2,
        **{
            **{"vocab_size": 340, "model_type": "bpe", "byte_fallback": True},
            **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
            **{"hard_vocab_limit": False, "allow_whitespace_only_pieces": True},
        }
        | options,
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    settings = {"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def test_a_sentencepiece_model_is_converted_exactly(tmp_path):
    processor = sentencepiece_folder(tmp_path)
    tokenizer = imported(tmp_path)
    for text in (*EXACT_TEXTS, "It says: répondez [,] \n  🙂"):
        assert text_ids(tokenizer, text) == processor.encode(text)


def test_a_sentencepiece_model_whose_conversion_differs_is_refused(tmp_path):
    sentencepiece_folder(tmp_path, normalization_rule_name="nmt_nfkc_cf")
    with pytest.raises(CheckpointError, match=r"differs from SentencePiece on \d+ of \d+ texts: "):
        imported(tmp_path)


def test_the_packages_that_a_conversion_needs_are_named(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr(
        importing, "find_spec", lambda name: None if name == "sentencepiece" else importlib
    )
    with pytest.raises(CheckpointError, match=r"pip install sentencepiece$"):
        imported(tmp_path)


def test_what_transformers_cannot_convert_is_one_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    (tmp_path / "vocab.json").write_text("[]")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"transformers cannot convert vocab.json and merges"):
        imported(tmp_path)


def test_a_folder_without_a_tokenizer_is_told_what_is_wanted(tmp_path):
    wanted = "wanted tokenizer.json, tokenizer.model, or vocab.json and merges.txt; download"
    with pytest.raises(CheckpointError, match=f"has no tokenizer, {wanted}"):
        imported(tmp_path)


def test_a_tiktoken_file_alone_is_refused_with_the_reason(tmp_path):
    (tmp_path / "qwen.tiktoken").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"has qwen\.tiktoken alone .*how text is split"):
        imported(tmp_path)


def test_a_tokenizer_is_read_from_its_own_file_again(tmp_path):
    tokenizer = imported(write(tmp_path, with_added("<v>")), 512)
    again = Tokenizer.from_str(tokenizer.to_str())
    assert again.to_str() == tokenizer.to_str()
