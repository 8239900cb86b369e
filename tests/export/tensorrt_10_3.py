"""Ops and types that TensorRT 10.3 (JetPack 6) parses, from its documentation: never run here.

Ops and their types: the support matrix in docs/operators.md of github.com/onnx/onnx-tensorrt at
release 10.1 (commit 96e7811, June 2024). Its changelog adds no op and no type in 10.2 and 10.3,
only that Slice takes its axes as a tensor. Listed are ops that an exported graph may contain.
uint8: the matrix lists it for network inputs and outputs and for Cast; TensorRT 10.7's operator
documentation, the oldest found, does not list it for the Shape layer.
"""

NEWEST_OPSET = 20
MAX_TOPK = 3839  # "less than 3840"

_FLOATS = {"FLOAT", "FLOAT16", "BFLOAT16"}
_NUMBERS = _FLOATS | {"INT32", "INT64"}
_ALL = _NUMBERS | {"BOOL"}
_OPS_BY_TYPES = (
    (
        _FLOATS,
        "Ceil Clip Conv Cos CumSum Einsum Erf Exp Floor Gemm LayerNormalization Log LogSoftmax "
        "MatMul Pow Reciprocal Round Sigmoid Sin Softmax Softplus Sqrt Tanh",
    ),
    (
        _NUMBERS,
        "Abs Add ArgMax ArgMin Div Equal Gelu Greater GreaterOrEqual Less LessOrEqual Max Mean Min "
        "Mod Mul Neg Pad Range ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu "
        "ScatterElements ScatterND Sign Sub Sum TopK",
    ),
    (
        _ALL,
        "Concat Constant ConstantOfShape Expand Flatten Gather GatherElements GatherND Identity "
        "Reshape Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where",
    ),
    (_ALL | {"UINT8"}, "Cast CastLike"),
    ({"BOOL"}, "And Not Or Xor"),
)
TYPES = {op: types for types, ops in _OPS_BY_TYPES for op in ops.split()}  # of data, by op

# Inputs that must be initializers, by op: (place, name).
CONSTANT_INPUTS = {
    "CumSum": (1, "axis"),
    "ReduceMax": (1, "axes"),
    "ReduceMean": (1, "axes"),
    "ReduceMin": (1, "axes"),
    "ReduceProd": (1, "axes"),
    "ReduceSum": (1, "axes"),
    "Squeeze": (1, "axes"),
    "Unsqueeze": (1, "axes"),
}
