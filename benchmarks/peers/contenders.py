"""The contenders: what each is, its environment, its worker and how its model is made."""

from dataclasses import dataclass

OURS = "mod-int8"
"""The contender that others are compared with: the default of `mod-edge export` for target cpu."""

# pip's arguments for every environment. torch is pinned as in constraints.txt; its default build
# for Linux is large, see README.md for the CPU build.
ENVIRONMENTS = {
    "transformers": ("torch==2.13.0", "transformers==5.23.0", "sentencepiece==0.2.3"),
    "llama-cpp": ("--no-binary=llama-cpp-python", "llama-cpp-python==0.3.36"),
    "openvino": (
        "torch==2.13.0",
        "optimum-intel[openvino]==2.2.0",
        "openvino==2026.4.1",
        "nncf==3.4.0",
    ),
    "genai": (
        "torch==2.13.0",
        "onnxruntime-genai==0.18.0",
        "transformers==5.23.0",
        "onnx==1.23.2",
        "onnx-ir==1.1.0",
    ),
}


@dataclass(frozen=True)
class Contender:
    """A runtime with a weight format.

    Attributes:
        key: of files and options.
        title: for people.
        environment: a key of `ENVIRONMENTS`; empty for this project's own.
        worker: its module in `benchmarks.peers.workers`.
        model: name of its model in the folder of models.
        weights: their format, and what multiplies them.
        head: rows of a step for which logits are computed.
        options: of the worker, after the model's path.
    """

    key: str
    title: str
    environment: str
    worker: str
    model: str
    weights: str
    head: str
    options: tuple[str, ...] = ()


LAST_ROW, FRAME_ROWS, ALL_ROWS = "last token", "last token of each frame", "every token"
INT8, INT4 = "8 bits, activations in 8 bits", "4 bits, activations in 8 bits"
BF16 = "bfloat16, activations in bfloat16"
INT4_BUT_HEAD = f"{INT4}; the head in 8 bits"

# environment, worker and, where one contender alone has it, model
OWN = ("", "run_mod_edge")
LLAMA_CPP = ("llama-cpp", "run_llama_cpp", "llama-cpp.gguf")
OPENVINO = ("openvino", "run_openvino")
GENAI = ("genai", "run_genai", "genai-int4")
TRANSFORMERS = ("transformers", "run_transformers", "llama")

CONTENDERS = (
    Contender(OURS, "mod-edge int8, MoD", *OWN, "mod-int8", INT8, FRAME_ROWS),
    Contender("mod-int4", "mod-edge int4, MoD", *OWN, "mod-int4", INT4_BUT_HEAD, FRAME_ROWS),
    Contender("full-int8", "mod-edge int8, full", *OWN, "full-int8", INT8, FRAME_ROWS),
    Contender("llama-cpp", "llama.cpp Q4_0", *LLAMA_CPP, INT4, LAST_ROW),
    Contender("openvino-int8", "OpenVINO int8", *OPENVINO, "openvino-int8", INT8, ALL_ROWS),
    Contender(
        "openvino-int4", "OpenVINO int4", *OPENVINO, "openvino-int4", INT4_BUT_HEAD, ALL_ROWS
    ),
    Contender("genai-int4", "onnxruntime-genai int4", *GENAI, INT4, LAST_ROW),
    Contender("eager", "transformers eager", *TRANSFORMERS, BF16, LAST_ROW, ("eager",)),
    Contender("compiled", "torch.compile", *TRANSFORMERS, BF16, LAST_ROW, ("compiled",)),
)
