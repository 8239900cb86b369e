"""Exact products of uint8 activations and int8 weights in ONNX Runtime, on every CPU.

On x86 without VNNI its kernels add pairs of products in 16 bits, which saturate silently: with
8-bit weights, results are wrong by up to 42 % of a row. An option of the session turns int8 weights
into uint8 as the graph is loaded; uint8 by uint8 is exact on every CPU, but slower. ONNX Runtime
cannot tell which CPU needs that (its own test is also true with VNNI), so a small graph is tried.

numpy is imported late: `doctor` reports it if it is missing.
"""

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from mod_edge.errors import BackendError
from mod_edge.native.onnx_session import session_options
from mod_edge.native.package_faults import package_of
from mod_edge.plan.graph_kind import KINDS
from mod_edge.plan.targets import Lowering
from mod_edge.plan.weight_forms import U8_ROWS, WeightForm

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnxruntime

U8_BY_S8, U8_BY_U8 = "u8 x s8", "u8 x u8"  # activations by weights
WEIGHTS_AS_U8 = "session.x64quantprecision"
# One MatMulInteger of uint8 rows by int8 weights that are stored in the graph, as a layer's are:
# every second column is 127, the others -127. Written by tests/native/int8_probe.py.
PROBE_FILE = "int8_probe.onnx"
# Larger than a kernel's tile and no multiple of one, so that remainders are computed too.
NUM_INPUTS, NUM_OUTPUTS = 67, 83
# Kernels for one row and for several differ; none takes more than 12 at once.
MOST_ROWS = 17


@cache
def exact_int8_products() -> str:
    """`U8_BY_S8` if ONNX Runtime multiplies uint8 by int8 exactly on this CPU, else `U8_BY_U8`.

    Raises:
        BackendError: neither is exact.
    """
    import onnxruntime

    for products in (U8_BY_S8, U8_BY_U8):
        if _are_exact(products):
            return products
    raise BackendError(
        f"onnxruntime {onnxruntime.__version__} multiplies int8 weights wrongly on this CPU; "
        f"upgrade it (pip install --upgrade {package_of('onnxruntime')}), or export the checkpoint "
        "with --weights as-dtype"
    )


def has_int8_products(form: WeightForm | None) -> bool:
    """Whether graphs whose weights have that form multiply uint8 by int8."""
    return form is not None and form.activations == U8_ROWS


def any_int8_products(lowering: Lowering) -> bool:
    """Whether some graphs of a bundle multiply uint8 by int8."""
    return any(has_int8_products(lowering.weight_form(kind)) for kind in KINDS)


def graph_session_options(
    form: WeightForm | None, products: str | None = None, *, shares_arena: bool = True
) -> "onnxruntime.SessionOptions":
    """`session_options` for a graph whose weights have that form.

    Args:
        form: of its weights; None if they are not quantized.
        products: `U8_BY_S8` or `U8_BY_U8`; None for what is exact on this CPU.
        shares_arena: False for a session on a GPU, see `session_options`.

    Raises:
        BackendError: onnxruntime is too old, or has no exact products on this CPU.
    """
    if not has_int8_products(form):
        return session_options(shares_arena=shares_arena)
    return _options(products or exact_int8_products(), shares_arena=shares_arena)


def expected_products() -> "npt.NDArray[np.int32]":
    """The probe's products (outputs,) of a row of codes that are all 255."""
    import numpy as np

    expected = np.full(NUM_OUTPUTS, -255 * 127 * NUM_INPUTS, np.int32)
    expected[::2] *= -1
    return expected


def _options(products: str, *, shares_arena: bool = True) -> "onnxruntime.SessionOptions":
    options = session_options(shares_arena=shares_arena)
    if products == U8_BY_U8:
        options.add_session_config_entry(WEIGHTS_AS_U8, "1")
    return options


def _are_exact(products: str) -> bool:
    """Whether the largest codes, whose sums saturate first, are multiplied exactly."""
    import numpy as np
    import onnxruntime

    model = files("mod_edge.native").joinpath(PROBE_FILE).read_bytes()
    session = onnxruntime.InferenceSession(
        model, _options(products), providers=["CPUExecutionProvider"]
    )
    expected = expected_products()
    for num_rows in range(1, MOST_ROWS + 1):
        codes = np.full((num_rows, NUM_INPUTS), 255, np.uint8)
        (found,) = session.run(["products"], {"codes": codes})
        if not (found == expected).all():
            return False
    return True
