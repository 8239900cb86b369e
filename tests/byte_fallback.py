"""A tokenizer of Llama 2's kind: words begin with "▁", other characters become byte tokens."""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CONTROL = ["<unk>", "<s>", "</s>"]
CORPUS = [
    "Hello world, hello there.",
    "The red ball stops: a man walks,",
    "Assistant User What",
] * 3


def byte_token(byte):
    return f"<0x{byte:02X}>"


def byte_fallback_tokenizer(num_learned=80, *, corpus=CORPUS):
    """Trained on `corpus`; in Llama 2's order: control tokens, bytes, learned tokens."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=num_learned, show_progress=False)
    learner.train_from_iterator(corpus, trainer)
    learned = json.loads(learner.to_str())["model"]
    tokens = [*CONTROL, *map(byte_token, range(256)), *sorted(learned["vocab"])]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(CONTROL)
    return tokenizer
