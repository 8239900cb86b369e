"""This project's runtime: `run_mod_edge.py BUNDLE`.

Steps of 11 tokens and their multiples are frames, each after its interval token. The head is
computed at each frame's last token, as the protocol needs it; in other steps at the last token.
"""

import sys
from pathlib import Path

import numpy as np

from benchmarks.peers.workers.line_protocol import MAX_STEP, NUM_POSITIONS, Steps, serve
from mod_edge.config import ModelConfig
from mod_edge.evaluation.eval_model import open_model
from mod_edge.plan.kv_budget import rows_of
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.layout import FRAME, StepLayout, step_layout
from mod_edge.runtime.loaded_model import StreamLimits

TOKEN_ID = 500


class ModEdge(Steps):
    """A stream of a bundle. Its cache is not filled: the rows of the past are zeros."""

    def __init__(self, folder: Path) -> None:
        source = open_model(folder, backend="onnx", device="cpu")
        config = self._config = source.config
        frame = self._frame_tokens = config.frame_num_tokens + 1
        num_frames = MAX_STEP // frame
        limits = StreamLimits(Rows(NUM_POSITIONS, NUM_POSITIONS), MAX_STEP, num_frames)
        self._model, _reason = source.load(limits)
        self._stream = self._model.open_stream()
        shape = (num_frames, config.frame_num_tokens, config.text_config.hidden_size)
        self._embeds = np.random.default_rng(0).standard_normal(shape).astype(source.dtype)
        self._past = Rows(0, 0)

    def fill(self, past: int) -> None:
        num_frames, num_text = divmod(past, self._frame_tokens)
        self._past = rows_of(self._config, num_frames + num_text, num_frames)

    def step(self, tokens: int) -> None:
        layout = layout_of(tokens, self._config)
        frames = layout.num_frames
        ids = [TOKEN_ID] * layout.text_index.size
        embeds = self._embeds[:frames] if frames else None
        self._stream.step(layout, ids, embeds, position=self._past.dense, past=self._past)
        self._stream.logits(layout.last_frame_rows.tolist() if frames else [tokens - 1])

    def cut(self) -> None:
        """Nothing to do: `past` of the next step says what the cache holds."""


def layout_of(tokens: int, config: ModelConfig) -> StepLayout:
    """A step of whole frames if `tokens` is a number of them, else of text."""
    num_frames, rest = divmod(tokens, config.frame_num_tokens + 1)
    pieces = (tokens,) if rest else (1, FRAME) * num_frames
    return step_layout(pieces, config.frame_num_tokens, config.num_kept)


if __name__ == "__main__":
    serve(lambda: ModEdge(Path(sys.argv[1])), ("mod-edge", "onnxruntime"))
