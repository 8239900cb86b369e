"""What a quantized graph must not quantize: routers and norms.

Numbers cannot show it: an int8 router is off by 2e-4 of a row on average and by 2e-2 at most, which
is less than what rounding activations may do, but it selects other tokens where two are close.
"""

from importlib.util import find_spec
from pathlib import Path

from mod_edge.errors import BackendError

FLOAT_PARTS = ("router", "norm")
QUANTIZED_OPS = frozenset({"DequantizeLinear", "MatMulInteger", "MatMulNBits"})


def structure_fault(path: Path) -> str:
    """Names the tensors of routers and norms that quantized ops read; "" if there are none.

    Without the onnx package nothing is read. A device with golden files has the same graph as the
    workstation where they were saved, which has the package.

    Raises:
        BackendError: the file is no graph.
    """
    if find_spec("onnx") is None:
        return ""
    import onnx

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as exc:  # protobuf's own type
        raise BackendError(f"it does not load: {exc}") from exc
    stored = {tensor.name for tensor in graph.initializer}
    quantized = {
        name
        for node in graph.node
        if node.op_type in QUANTIZED_OPS
        for name in node.input
        if name in stored and any(part in name for part in FLOAT_PARTS)
    }
    if not quantized:
        return ""
    return f"it quantizes {', '.join(sorted(quantized))}, but routers and norms stay float32"
