"""Rounds all weights of a GGUF file to Q4_0: `quantize_gguf.py SOURCE.gguf TARGET.gguf`."""

import sys

import llama_cpp

if __name__ == "__main__":
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    options.pure = True  # else the embedding table, which is the head as well, gets 6 bits
    source, target = (path.encode() for path in sys.argv[1:])
    sys.exit(llama_cpp.llama_model_quantize(source, target, options))
