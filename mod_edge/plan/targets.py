"""The table of targets, and the lowering of a bundle's graphs for one of them.

`cpu` and `cuda` are ONNX Runtime, `rtx` is TensorRT-RTX, `tensorrt` is TensorRT 10.15 or newer, and
`tensorrt-delta` is older TensorRT without KV cache ops (JetPack 6 has 10.3, JetPack 7.0 has 10.13).
All differences between targets are fields of this table or follow from one.
"""

from dataclasses import dataclass
from typing import Any

from mod_edge.errors import ConfigError, nearest_hint
from mod_edge.plan.graph_kind import GraphKind
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.weight_forms import (
    AS_DTYPE,
    DEQUANTIZED_INT4,
    DEQUANTIZED_INT8,
    FORMAT_NAMES,
    INT4,
    INT8,
    INT8_ROWS,
    INT8_WEIGHT_ONLY,
    KEEPING_DTYPE,
    NBITS_INT4,
    NBITS_INT4_CPU,
    NBITS_INT8,
    WeightForm,
    WeightFormat,
)

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # numpy's names
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "uint8": 1}

# The first TensorRT with TensorScatter as an in-place KV cache update.
KV_CACHE_UPDATE_VERSION = (10, 15)


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        name: value of `--target`.
        dialect: `delta` (plain ops, new rows out) or `in_place` (TensorScatter and Attention).
        opset: of its graphs; 20 is the newest that TensorRT 10.3 reads.
        precisions: keys of `DTYPES` that it supports.
        compiler: the Python module that compiles its engines, "" if ONNX Runtime runs the graphs.
        runs_on: for people.
        weight_formats: the formats of weights that it supports, the unquantized one first.
    """

    name: str
    dialect: str
    opset: int
    precisions: tuple[str, ...]
    compiler: str
    runs_on: str
    weight_formats: tuple[WeightFormat, ...] = (KEEPING_DTYPE,)

    @property
    def has_device_cache(self) -> bool:
        """Whether the KV cache lives in device memory, so that the device rebases the sink."""
        return self.name != "cpu"

    def weight_format(self, name: str) -> WeightFormat:
        """The target's weight format of that name.

        Raises:
            ConfigError: it has none, or no target has; lists those to choose from.
        """
        if name not in FORMAT_NAMES:
            hint = nearest_hint(name, FORMAT_NAMES)
            raise ConfigError(
                f"unknown weights {name!r}{hint}, known are {', '.join(FORMAT_NAMES)}"
            )
        for each in self.weight_formats:
            if each.name == name:
                return each
        supported = ", ".join(each.name for each in self.weight_formats)
        raise ConfigError(
            f"target {self.name} supports the weights {supported}, not {name!r}; use one of these, "
            "or another target (mod-edge targets)"
        )


CPU_FORMATS = (
    KEEPING_DTYPE,
    WeightFormat(INT8, INT8_ROWS, INT8_ROWS),
    WeightFormat(INT4, NBITS_INT4_CPU, INT8_ROWS),
)
CUDA_FORMATS = (
    KEEPING_DTYPE,
    WeightFormat(INT8_WEIGHT_ONLY, NBITS_INT8, NBITS_INT8),
    WeightFormat(INT4, NBITS_INT4, NBITS_INT8),
)
TENSORRT_INT8 = WeightFormat(INT8_WEIGHT_ONLY, DEQUANTIZED_INT8, DEQUANTIZED_INT8)
# INT4 tensors are new in opset 21.
TENSORRT_FORMATS = (
    KEEPING_DTYPE,
    TENSORRT_INT8,
    WeightFormat(INT4, DEQUANTIZED_INT4, DEQUANTIZED_INT8),
)

# bf16 is missing where the opset's ops do not support it (Conv before 22) or where it is untested
# (ONNX Runtime's CUDA provider; its CPU provider has no bf16 MatMul).
TARGETS = {
    target.name: target
    for target in (
        Target("cpu", "delta", 20, ("fp32",), "", "ONNX Runtime on a CPU", CPU_FORMATS),
        Target(
            "cuda",
            "in_place",
            24,
            ("fp32", "fp16"),
            "",
            "ONNX Runtime's CUDA provider",
            CUDA_FORMATS,
        ),
        Target(
            "rtx",
            "in_place",
            24,
            ("fp32", "fp16", "bf16"),
            "tensorrt_rtx",
            "TensorRT-RTX",
            TENSORRT_FORMATS,
        ),
        Target(
            "tensorrt",
            "in_place",
            24,
            ("fp32", "fp16", "bf16"),
            "tensorrt",
            "TensorRT 10.15 or newer",
            TENSORRT_FORMATS,
        ),
        Target(
            "tensorrt-delta",
            "delta",
            20,
            ("fp32", "fp16"),
            "tensorrt",
            "TensorRT 10.3 to 10.14 (JetPack 6 and 7.0)",
            (KEEPING_DTYPE, TENSORRT_INT8),
        ),
    )
}


def target_named(name: str) -> Target:
    """The target of that name.

    Raises:
        ConfigError: there is none; lists the known ones.
    """
    if name not in TARGETS:
        hint = nearest_hint(name, TARGETS)
        raise ConfigError(f"unknown target {name!r}{hint}, known are {', '.join(TARGETS)}")
    return TARGETS[name]


@dataclass(frozen=True)
class Lowering:
    """The target, precision and cache size that a bundle's graphs are made for.

    Attributes:
        target: name of a target.
        precision: dtype of hidden states and the KV cache; one of the target's.
        capacity: rows of the cache buffers, fixed in `in_place` graphs (TensorRT requires static
            ones); None for `delta` graphs, which take a past of any length.
        weight_format: name of one of the target's weight formats.
    """

    target: str
    precision: str
    capacity: Rows | None = None
    weight_format: str = AS_DTYPE

    def __post_init__(self) -> None:
        target = target_named(self.target)
        if self.precision not in target.precisions:
            raise ConfigError(
                f"target {self.target} supports {', '.join(target.precisions)}, not "
                f"{self.precision!r}; use one of these, or another target (mod-edge targets)"
            )
        target.weight_format(self.weight_format)
        if (self.capacity is not None) != (target.dialect == "in_place"):
            raise ConfigError(
                f"target {self.target} is {target.dialect} and got capacity={self.capacity}; "
                "in_place graphs need a fixed number of cache rows, delta graphs must have None"
            )

    @property
    def dialect(self) -> str:
        """The target's dialect."""
        return TARGETS[self.target].dialect

    @property
    def opset(self) -> int:
        """The target's opset."""
        return TARGETS[self.target].opset

    @property
    def dtype(self) -> str:
        """The precision as a dtype name; numpy itself has no bfloat16."""
        return DTYPES[self.precision]

    @property
    def binds_unused_rows(self) -> bool:
        """Whether steps bind rows of the past that are not in use, which graphs then mask.

        On a device these are a whole cache or a bucket of rows; on the CPU a step binds exactly the
        rows in use, or one row of zeros where there is no past.
        """
        return TARGETS[self.target].has_device_cache

    @property
    def is_quantized(self) -> bool:
        """Whether weights are quantized; the embedding table is then int8 with a scale per row."""
        return self.weight_format != AS_DTYPE

    @property
    def numbers(self) -> str:
        """The precision, and the format of quantized weights, for people."""
        weights = f", {self.weight_format} weights" if self.is_quantized else ""
        return f"{self.precision}{weights}"

    def weight_form(self, kind: GraphKind) -> WeightForm | None:
        """How the linear weights of one kind of graph are held; None in the precision's dtype."""
        chosen = TARGETS[self.target].weight_format(self.weight_format)
        return chosen.layers if kind.is_layer else chosen.others

    def to_json(self) -> dict[str, Any]:
        """Input of `lowering_from_json`; omits the weight format if it is `AS_DTYPE`."""
        capacity = None if self.capacity is None else list(self.capacity)
        document = {"target": self.target, "precision": self.precision, "capacity": capacity}
        if self.weight_format != AS_DTYPE:
            document["weight_format"] = self.weight_format
        return document


def lowering_from_json(data: dict[str, Any]) -> Lowering:
    """The lowering from a parsed JSON document.

    Raises:
        ConfigError: unknown target, precision or weight format.
        KeyError: a field is missing.
    """
    capacity = data["capacity"]
    return Lowering(
        data["target"],
        data["precision"],
        None if capacity is None else Rows(*capacity),
        data.get("weight_format", AS_DTYPE),
    )


CPU_FP32 = Lowering("cpu", "fp32")
