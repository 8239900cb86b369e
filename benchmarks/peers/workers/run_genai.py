"""onnxruntime-genai: `run_genai.py FOLDER`. The head at the last token only."""

import json
import sys

import numpy as np
import onnxruntime_genai

from benchmarks.peers.workers.line_protocol import (
    NUM_POSITIONS,
    PREFILL_STEP,
    THREADS,
    Steps,
    serve,
)

TOKEN_ID = 500


class GenAi(Steps):
    """One generator, whose cache has a fixed size."""

    def __init__(self, folder: str) -> None:
        config = onnxruntime_genai.Config(folder)
        options = {"intra_op_num_threads": THREADS}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = onnxruntime_genai.Model(config)
        params = onnxruntime_genai.GeneratorParams(self._model)
        params.set_search_options(max_length=NUM_POSITIONS, do_sample=False)
        self._generator = onnxruntime_genai.Generator(self._model, params)
        self._past = 0

    def fill(self, past: int) -> None:
        self._generator.rewind_to(0)
        for start in range(0, past, PREFILL_STEP):
            self.step(min(PREFILL_STEP, past - start))
        self._past = past

    def step(self, tokens: int) -> None:
        self._generator.append_tokens(np.full((1, tokens), TOKEN_ID, np.int32))
        self._generator.get_output("logits")

    def cut(self) -> None:
        self._generator.rewind_to(self._past)


if __name__ == "__main__":
    serve(lambda: GenAi(sys.argv[1]), ("onnxruntime-genai",))
