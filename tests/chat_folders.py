"""Tokenizers and folders with the published chat templates, as the judge of ours reads them."""

import json
from dataclasses import replace

from mod_edge.plan.chat import TEMPLATES
from mod_edge.plan.tokenizer import BOS, preset_tokenizer

# The template strings of Qwen 1.5 (ChatML) and Llama 3, as their public documentation has them.
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PUBLISHED = {"chatml": CHATML, "llama3": LLAMA3}
END_OF_TURN = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}
BOS_TOKEN = {"chatml": None, "llama3": BOS}


def chat_tokenizer(name):
    """A small tokenizer with the control tokens of the template `name`; not prepared."""
    tokenizer = preset_tokenizer(600)
    tokenizer.encode_special_tokens = False
    tokenizer.add_special_tokens(list(TEMPLATES[name].control_tokens))
    return tokenizer


def in_chat_template(stream, name, tokenizer):
    """The stream config with the template `name` and its tokens in `tokenizer`."""
    bos = BOS_TOKEN[name]
    return replace(
        stream,
        bos_token_id=bos and tokenizer.token_to_id(bos),
        eos_token_id=tokenizer.token_to_id(END_OF_TURN[name]),
        chat_template=TEMPLATES[name],
    )


def write_folder(path, name, *, tokenizer=None, template=True, config=(), settings=()):
    """The tokenizer's part of a Hugging Face folder, and the parsed config.json.

    `config` and `settings` change config.json and tokenizer_config.json, `template` is another
    program, or False.
    """
    path.mkdir(exist_ok=True)
    tokenizer = tokenizer or chat_tokenizer(name)
    tokenizer.save(str(path / "tokenizer.json"))
    end, bos = END_OF_TURN[name], BOS_TOKEN[name]
    documents = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 640,
            "eos_token_id": tokenizer.token_to_id(end),
        }
        | dict(config),
        "tokenizer_config.json": {"eos_token": end, "bos_token": bos} | dict(settings),
    }
    for file, document in documents.items():
        (path / file).write_text(json.dumps(document))
    if template:
        source = PUBLISHED[name] if template is True else template
        (path / "chat_template.jinja").write_text(source)
    return documents["config.json"]


def judge_of(tokenizer, name):
    """The tokenizer of transformers with the published template `name`."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=PUBLISHED[name],
        bos_token=BOS_TOKEN[name],
        eos_token=END_OF_TURN[name],
    )


def judged_ids(judge, *messages):
    """The ids of a conversation, system prompt first, and the prompt for its next reply."""
    roles = ["system", *["user", "assistant"] * len(messages)]
    conversation = [
        {"role": role, "content": content} for role, content in zip(roles, messages, strict=False)
    ]
    return judge.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=False
    )
