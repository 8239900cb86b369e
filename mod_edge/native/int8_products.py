"""Whether ONNX Runtime multiplies uint8 by int8 exactly on this CPU, found out by multiplying.

On x86 without VNNI its kernels add pairs of products in 16 bits, which saturate silently: with
8-bit weights and 8-bit activations, results are wrong by up to 42 % of a row. uint8 by uint8 is
exact everywhere but slower, so int8 bundles have a second graph file for such CPUs.
"""

from functools import cache
from importlib.resources import files

import numpy as np

from mod_edge.native.onnx_session import session_options

# One MatMulInteger of uint8 rows [R, 64] and the int8 input [64, 24]; made by tests/native.
PROBE_FILE = "u8_s8_product.onnx"
# Kernels for one row and for several rows differ.
NUM_ROWS = (1, 5, 16)
NUM_INPUTS, NUM_OUTPUTS = 64, 24


@cache
def multiplies_u8_by_s8_exactly() -> bool:
    """Whether the largest uint8 and int8 values give exact products here."""
    import onnxruntime

    model = files("mod_edge.native").joinpath(PROBE_FILE).read_bytes()
    session = onnxruntime.InferenceSession(
        model, session_options(), providers=["CPUExecutionProvider"]
    )
    weights = np.full((NUM_INPUTS, NUM_OUTPUTS), 127, np.int8)
    weights[:, ::2] = -127
    for num_rows in NUM_ROWS:
        codes = np.full((num_rows, NUM_INPUTS), 255, np.uint8)
        (products,) = session.run(["products"], {"codes": codes, "weights": weights})
        if not np.array_equal(products, codes.astype(np.int32) @ weights.astype(np.int32)):
            return False
    return True
