"""`python -m benchmarks.torch_step CHECKPOINT`: full computation's decoder step in PyTorch.

transformers' Llama of the checkpoint's geometry with random weights and a static cache, eager and
compiled, in turns, on the GPU if there is one. Steps are those of `mod-edge bench`: a text token
and 1, 2 and 5 frames with their interval tokens, without the head.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from transformers import LlamaConfig, LlamaModel, StaticCache

from mod_edge.commands.console import out, reports_errors
from mod_edge.config import ModelConfig, TextConfig
from mod_edge.model.checkpoint_folder import read_checkpoint_config
from mod_edge.plan.kv_budget import rows_of_frames

FRAME_COUNTS = (1, 2, 5)
NUM_WARM_UPS, NUM_ROUNDS = 3, 11


@reports_errors
def measure(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float16",
    past: Annotated[int, typer.Option(help="Tokens before the step.")] = 4000,
) -> None:
    """Measure steps in PyTorch, eager and compiled, and print one JSON document."""
    config = read_checkpoint_config(checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = {name: _rounds(config, num, past, dtype, device) for name, num in _sizes(config)}
    document = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "dtype": dtype,
        "num_layers": config.text_config.num_hidden_layers,
        "past": past,
        "steps": steps,
    }
    out.print(json.dumps(document))


def _sizes(config: ModelConfig) -> list[tuple[str, int]]:
    """Names and token counts of the steps."""
    num_between = len(config.stream_config.interval_ids)
    frames = [
        (f"frames-{count}", rows_of_frames(config, count, num_before=num_between).dense)
        for count in FRAME_COUNTS
    ]
    return [("text", 1), *frames]


def _rounds(
    config: ModelConfig, num_tokens: int, past: int, dtype: str, device: str
) -> dict[str, float]:
    """Median milliseconds of a step, eager and compiled."""
    with torch.device(device):
        model = LlamaModel(_llama(config.text_config)).to(getattr(torch, dtype)).eval()
        hidden = torch.zeros(1, num_tokens, config.text_config.hidden_size, dtype=model.dtype)
        positions = torch.arange(past, past + num_tokens)[None]
        mask = torch.zeros(1, 1, num_tokens, past + num_tokens, dtype=model.dtype)
        mask[..., past:].masked_fill_(
            torch.ones(num_tokens, num_tokens, dtype=torch.bool).triu(1), float("-inf")
        )
    cache = StaticCache(model.config, past + num_tokens)
    compiled = torch.compile(model, mode="reduce-overhead")  # with CUDA graphs, on a GPU

    def step(run: Callable[..., Any]) -> Callable[[], None]:
        def take() -> None:
            cache.reset()
            run(
                inputs_embeds=hidden,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )

        return take

    actions = {"eager_ms": step(model), "compiled_ms": step(compiled)}
    times: dict[str, list[float]] = {name: [] for name in actions}
    with torch.inference_mode():
        for number in range(NUM_WARM_UPS + NUM_ROUNDS):
            for name, action in actions.items():
                elapsed_ms = _milliseconds(action, device)
                if number >= NUM_WARM_UPS:
                    times[name].append(elapsed_ms)
    torch.compiler.reset()
    return {name: round(median(each), 4) for name, each in times.items()}


def _milliseconds(action: Callable[[], None], device: str) -> float:
    started = time.perf_counter()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started)


def _llama(text: TextConfig) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        vocab_size=32,  # the steps read no embedding
        pad_token_id=None,
        attn_implementation="sdpa",
    )


if __name__ == "__main__":
    typer.run(measure)
