"""A naive decoder: the reference implementation for compaction, caches and positions.

Nothing is compacted, gathered or cached. Every layer computes every token of the stream, a mask
hides the keys of skipped tokens, and `torch.where` restores their old hidden states. Written from
the paper's text, config and weights alone; it shares no code with the model under test.
"""

import torch


def naive_logits(model, embeds, frames, drawn=None):
    """Logits (T, V) of a whole stream, and for each MoD layer a list of kept tokens per frame.

    Args:
        model: only its `config` and `state_dict()` are read.
        embeds: (T, D).
        frames: the rows of each frame's tokens.
        drawn: tokens that a `random` selection kept: MoD layer -> one list per frame.
    """
    config, weights = model.config, model.state_dict()
    text = config.text_config
    hidden, kept = embeds, {}
    for index in range(text.num_hidden_layers):
        prefix = f"model.layers.{index}."
        layer = {
            name.removeprefix(prefix): value
            for name, value in weights.items()
            if name.startswith(prefix)
        }
        is_computed = torch.ones(len(hidden), dtype=torch.bool)
        token_weights = torch.ones(len(hidden), dtype=hidden.dtype)
        if is_mod_layer(config, index):
            is_computed, token_weights, kept[index] = choose(
                config, layer, hidden, frames, drawn and drawn[index]
            )
        added = branch(text, layer, hidden, is_computed)
        token_weights = token_weights[:, None]
        if config.mod_config is None or config.mod_config.router_scaling == "delta":
            computed = hidden + token_weights * added
        else:
            computed = token_weights * (hidden + added)
        hidden = torch.where(is_computed[:, None], computed, hidden)
    head = "model.embed_tokens.weight" if text.tie_word_embeddings else "lm_head.weight"
    return norm(hidden, weights["model.norm.weight"], text.rms_norm_eps) @ weights[head].T, kept


def is_mod_layer(config, index):
    """The paper's table of insertions."""
    if config.mod_config is None:
        return False
    return {
        "interleaved": index % 2 == 1,
        "all": True,
        "interleaved_deep": index >= 2 and index % 2 == 1,
        "all_deep": index >= 2,
        "early_exit": index >= config.mod_config.exit_layer,
        "layer_skip": index % 2 == 1,
    }[config.mod_config.insertion]


def choose(config, layer, hidden, frames, drawn):
    """Which tokens (T,) a MoD layer computes, their weights (T,), and each frame's kept tokens."""
    is_computed = torch.ones(len(hidden), dtype=torch.bool)
    token_weights = torch.ones(len(hidden), dtype=hidden.dtype)
    num_tokens = config.frame_num_tokens
    num_kept = -int(-round(config.mod_config.keep_ratio * num_tokens, 6) // 1)
    kept = []
    for frame, rows in enumerate(frames):
        if config.mod_config.insertion in ("early_exit", "layer_skip"):
            chosen = []
        elif config.mod_config.selection == "random":
            chosen = drawn[frame]
        elif config.mod_config.selection == "uniform":
            chosen = [n * (num_tokens // num_kept) for n in range(num_kept)]
        else:
            logits = hidden[rows] @ layer["router.weight"][0] + layer["router.bias"]
            token_weights[rows] = 1 / (1 + torch.exp(-logits))
            heaviest_first = sorted(range(num_tokens), key=lambda n: -float(logits[n]))
            chosen = sorted(heaviest_first[:num_kept])
        for n, row in enumerate(rows):
            is_computed[row] = n in chosen
        kept.append(chosen)
    return is_computed, token_weights, kept


def branch(text, layer, hidden, is_visible):
    """The outputs (T, D) of attention and MLP, where only the visible tokens have keys."""
    num_tokens = len(hidden)
    is_hidden = torch.ones(num_tokens, num_tokens, dtype=torch.bool).triu(1) | ~is_visible
    is_hidden.fill_diagonal_(False)  # a token attends to itself; a skipped one's output is not used
    normed = norm(hidden, layer["input_layernorm.weight"], text.rms_norm_eps)
    query, key, value = (heads_of(text, layer, normed, name) for name in "qkv")
    group = text.num_attention_heads // text.num_key_value_heads
    heads = []
    for head in range(text.num_attention_heads):
        q, k = (rotated(states, text.rope_theta) for states in (query[head], key[head // group]))
        scores = (q @ k.T / text.head_dim**0.5).masked_fill(is_hidden, -torch.inf)
        heads.append(torch.softmax(scores, dim=1) @ value[head // group])
    attention = torch.cat(heads, dim=1) @ layer["self_attn.o_proj.weight"].T
    normed = norm(hidden + attention, layer["post_attention_layernorm.weight"], text.rms_norm_eps)
    gate = normed @ layer["mlp.gate_proj.weight"].T
    up = normed @ layer["mlp.up_proj.weight"].T
    return attention + (gate * torch.sigmoid(gate) * up) @ layer["mlp.down_proj.weight"].T


def heads_of(text, layer, normed, name):
    """The heads (T, E) of one projection, with bias and norm where the weights have them."""
    projected = normed @ layer[f"self_attn.{name}_proj.weight"].T
    projected = projected + layer.get(f"self_attn.{name}_proj.bias", 0)
    heads = projected.split(text.head_dim, dim=1)
    weight = layer.get(f"self_attn.{name}_norm.weight")
    return heads if weight is None else [norm(head, weight, text.rms_norm_eps) for head in heads]


def rotated(states, theta):
    """RoPE of (T, E) at positions 0..T-1: pairs (i, i + E/2) as complex numbers."""
    num_tokens, head_dim = states.shape
    half = head_dim // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(num_tokens, dtype=torch.float64)[:, None] * frequencies
    pairs = torch.complex(states[:, :half].double(), states[:, half:].double())
    pairs = pairs * torch.exp(1j * angles)
    return torch.cat([pairs.real, pairs.imag], dim=1).to(states.dtype)


def norm(hidden, weight, eps):
    """RMSNorm."""
    return weight * hidden / (hidden.square().mean(dim=1, keepdim=True) + eps).sqrt()
