"""OpenVINO's CPU plugin, the exported stateful model fed directly: `run_openvino.py FOLDER`.

Its graph computes the head for every row of a step. The plugin's own defaults hold: the cache in 8
bits, other activations in bfloat16 where the CPU has it, products in 8 bits.
"""

import sys
from pathlib import Path

import numpy as np
import openvino

from benchmarks.peers.workers.line_protocol import THREADS, Steps, serve

TOKEN_ID = 500


class OpenVino(Steps):
    """A compiled model and its one request, whose states are the cache."""

    def __init__(self, folder: Path) -> None:
        core = openvino.Core()
        options = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
        compiled = core.compile_model(folder / "openvino_model.xml", "CPU", options)
        self._request = compiled.create_infer_request()
        self._zeros = openvino.Tensor(np.zeros(0, np.float32))
        self._past = 0

    def fill(self, past: int) -> None:
        self._past = 0
        self._request.reset_state()
        self.step(1)  # the states have their shape only now
        _batch, heads, _rows, head_dim = self._request.query_state()[0].state.shape
        self._zeros = openvino.Tensor(np.zeros((1, heads, past, head_dim), np.float32))
        self._past = past
        self.cut()

    def step(self, tokens: int) -> None:
        total = self._past + tokens
        inputs = {
            "input_ids": np.full((1, tokens), TOKEN_ID, np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(self._past, total, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.infer(inputs, share_inputs=True, share_outputs=True)

    def cut(self) -> None:
        for state in self._request.query_state():
            state.state = self._zeros


if __name__ == "__main__":
    serve(lambda: OpenVino(Path(sys.argv[1])), ("openvino",))
