"""Writes the Llama that all peers convert: `write_llama.py GEOMETRY FOLDER`.

GEOMETRY is JSON: the arguments of `LlamaConfig`. The weights are random, in bfloat16. Converters
want a tokenizer, which no measured step uses: llama.cpp's knows only SentencePiece's among those
that can be made without a network, the others load `tokenizer.json`.
"""

import json
import sys
from pathlib import Path

import sentencepiece
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NUM_LEARNED = 300


def write_llama(geometry: dict[str, object], folder: Path) -> None:
    """Write config, weights and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(LlamaConfig(**geometry, bos_token_id=1, eos_token_id=2))
    model.save_pretrained(folder)
    _write_sentencepiece(folder)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, "<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def _write_sentencepiece(folder: Path) -> None:
    corpus = (f"{number} frames of {number * number} tokens" for number in range(500))
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=corpus,
            model_writer=file,
            model_type="bpe",
            vocab_size=NUM_LEARNED,
            byte_fallback=True,
            hard_vocab_limit=False,
            minloglevel=2,
        )


if __name__ == "__main__":
    write_llama(json.loads(sys.argv[1]), Path(sys.argv[2]))
