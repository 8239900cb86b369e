"""Tokenizers with the published chat templates, as the judge of ours reads them."""

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
