"""llama.cpp through llama-cpp-python's C interface: `run_llama_cpp.py MODEL.gguf`."""

import sys

import llama_cpp

from benchmarks.peers.workers.line_protocol import (
    NUM_POSITIONS,
    PREFILL_STEP,
    THREADS,
    Steps,
    serve,
)

TOKEN_ID = 500


class LlamaCpp(Steps):
    """One sequence of a llama.cpp context; logits of a step's last token only."""

    def __init__(self, path: str) -> None:
        llama_cpp.llama_backend_init()
        model_options = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), model_options)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = NUM_POSITIONS
        options.n_batch = options.n_ubatch = PREFILL_STEP
        options.n_threads = options.n_threads_batch = THREADS
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(PREFILL_STEP, 0, 1)
        self._past = 0

    def fill(self, past: int) -> None:
        llama_cpp.llama_memory_clear(self._memory, True)
        for start in range(0, past, PREFILL_STEP):
            self._past = start
            self.step(min(PREFILL_STEP, past - start))
        self._past = past

    def step(self, tokens: int) -> None:
        batch = self._batch
        batch.n_tokens = tokens
        for row in range(tokens):
            batch.token[row] = TOKEN_ID
            batch.pos[row] = self._past + row
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = 0
            batch.logits[row] = row == tokens - 1
        failed = llama_cpp.llama_decode(self._context, batch)
        assert not failed, f"llama_decode returned {failed}"
        assert llama_cpp.llama_get_logits_ith(self._context, tokens - 1)

    def cut(self) -> None:
        assert llama_cpp.llama_memory_seq_rm(self._memory, 0, self._past, -1)


if __name__ == "__main__":
    serve(lambda: LlamaCpp(sys.argv[1]), ("llama-cpp-python",))
