"""How fast ONNX Runtime multiplies large matrices on this CPU, with the options that graphs have.

numpy is imported late, as everywhere in this folder.
"""

import time
from importlib.resources import files

from mod_edge.native.int8_products import graph_session_options
from mod_edge.plan.weight_forms import INT8_ROWS, WeightForm

# One product of rows by a square weight of ones each, made from its shape as the graph is loaded.
# Written by tests/native/matmul_graphs.py.
FLOAT_FILE, INT8_FILE = "matmul_fp32.onnx", "matmul_int8.onnx"
WEIGHT_SIDE = 2048
# The best number of rows differs from kernel to kernel.
NUM_ROWS = (64, 128, 512)
NUM_RUNS = 7


def float_flops_per_s() -> float:
    """FLOPs per second of float32 products; a multiply-add is two."""
    return _flops_per_s(FLOAT_FILE, "float32", None)


def int8_flops_per_s() -> float:
    """Operations per second of uint8 by int8 products, as exact as graphs need them.

    Raises:
        BackendError: this onnxruntime has no exact products on this CPU.
    """
    return _flops_per_s(INT8_FILE, "uint8", INT8_ROWS)


def _flops_per_s(file: str, dtype: str, form: WeightForm | None) -> float:
    """The best of all runs: what else the machine does only makes a run slower."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(
        files("mod_edge.native").joinpath(file).read_bytes(),
        graph_session_options(form),
        providers=["CPUExecutionProvider"],
    )
    best = 0.0
    for num_rows in NUM_ROWS:
        rows = np.ones((num_rows, WEIGHT_SIDE), dtype)
        for _ in range(NUM_RUNS):
            started = time.perf_counter()
            session.run(["products"], {"rows": rows})
            elapsed_s = time.perf_counter() - started
            best = max(best, 2 * num_rows * WEIGHT_SIDE**2 / elapsed_s)
    return best
