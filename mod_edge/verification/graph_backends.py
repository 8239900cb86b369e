"""Backends that run one graph alone: Polygraphy's runners over mod-edge's ONNX Runtime sessions.

No PyTorch here: a device that compares a bundle with golden files has none.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.common import TensorMetadata

from mod_edge.errors import BackendError
from mod_edge.native.int8_products import (
    U8_BY_S8,
    U8_BY_U8,
    any_int8_products,
    exact_int8_products,
    graph_session_options,
    has_int8_products,
)
from mod_edge.native.native_path import native_path
from mod_edge.native.onnx_session import names_dtypes_dims
from mod_edge.plan.signature import GraphSignature, TensorSpec
from mod_edge.plan.targets import TARGETS, Lowering
from mod_edge.plan.weight_forms import WeightForm
from mod_edge.verification.recording import held_dtype

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# TF32 rounds float32 factors to 10 bits, which a parity check must not measure.
PROVIDER_OPTIONS: dict[str, dict[str, str]] = {CPU: {}, CUDA: {"use_tf32": "0"}}
WEIGHTS_FOLDER_KEY = "session.model_external_initializers_file_folder_path"
# Changes that ONNX Runtime may need: float32 Attention lowered for TensorRT has an attribute that
# only TensorRT takes (`export.lower`), and ONNX Runtime's CPU has no bfloat16 arithmetic.
UNMARKED, WIDENED = "removing TensorRT's attribute", "widening bfloat16 to float32"
ONNX_CPU, ONNX_CPU_UNSIGNED = "onnx CPU", f"onnx CPU ({U8_BY_U8})"


@dataclass(frozen=True)
class GraphBackend:
    """A way to run a graph: its name, and Polygraphy's runner for the file of a signature.

    Activating the runner raises BackendError if the file does not load or does not match its
    signature.

    Attributes:
        name: for display.
        runner: makes the runner.
        max_weight_bytes: larger graphs are not run.
        products: how it multiplies uint8 by int8, `U8_BY_S8` or `U8_BY_U8`; None for what is exact
            here.
    """

    name: str
    runner: Callable[[Path, GraphSignature], BaseRunner]
    max_weight_bytes: float = math.inf
    products: str | None = None

    def takes(self, form: WeightForm | None) -> bool:
        """Whether it is for graphs whose weights have that form."""
        return self.products != U8_BY_U8 or has_int8_products(form)

    def obstacle(self, path: Path, form: WeightForm | None) -> str:
        """Why the graph at `path`, whose weights have that form, cannot be run; "" if it can."""
        if has_int8_products(form) and self.products not in (None, U8_BY_U8, exact_int8_products()):
            return f"onnxruntime's {self.products} products are not exact on this CPU"
        weights = path.with_suffix(".data")
        size_bytes = weights.stat().st_size if weights.exists() else 0
        if size_bytes <= self.max_weight_bytes:
            return ""
        return (
            f"it would take minutes: {size_bytes / 2**20:.0f} MiB of weights, the limit is "
            f"{self.max_weight_bytes / 2**20:.0f} MiB"
        )


@dataclass(frozen=True)
class NotRun:
    """A backend that was not run, and why."""

    name: str
    reason: str


NO_CUDA = NotRun("onnx CUDA", "this onnxruntime has no CUDA provider")


def graph_backends(lowering: Lowering) -> tuple[list[GraphBackend], list[NotRun]]:
    """The backends for a bundle's graphs: those that this machine has, and those it does not."""
    backends: list[GraphBackend] = []
    not_run: list[NotRun] = []
    change = rewriting(lowering)
    if change and find_spec("onnx") is None:
        not_run.append(NotRun(ONNX_CPU, f"{change} needs the onnx package"))
    elif any_int8_products(lowering):
        # Both are judged on every CPU: `run` takes the second where the first is not exact.
        backends += [onnx_backend(lowering, CPU, each) for each in (U8_BY_S8, U8_BY_U8)]
    else:
        backends.append(onnx_backend(lowering, CPU))
    if lowering.target == "cuda" and has_cuda_provider():
        backends.append(onnx_backend(lowering, CUDA))
    elif lowering.target == "cuda":
        not_run.append(NO_CUDA)
    return backends, not_run


def has_cuda_provider() -> bool:
    """Whether the installed ONNX Runtime is built with CUDA."""
    return CUDA in onnxruntime.get_available_providers()


def onnx_backend(
    lowering: Lowering, provider: str = CPU, products: str | None = None
) -> GraphBackend:
    """ONNX Runtime on one provider.

    A bfloat16 graph widened for the CPU proves its nodes, wiring and weights, but not the error of
    rounding intermediate results.

    Args:
        lowering: of the graphs.
        provider: `CPU` or `CUDA`.
        products: see `GraphBackend`.
    """
    name = ONNX_CPU if provider == CPU else "onnx CUDA"
    if products == U8_BY_U8:
        name = ONNX_CPU_UNSIGNED
    elif rewriting(lowering) == WIDENED:
        name += " (widened)"

    def runner(path: Path, signature: GraphSignature) -> BaseRunner:
        return OnnxGraphRunner(path, signature, lowering, provider, products)

    return GraphBackend(name, runner, products=products)


def rewriting(lowering: Lowering) -> str:
    """The change to a graph that ONNX Runtime needs; "" for none."""
    if lowering.precision == "bf16":
        return WIDENED
    is_marked = TARGETS[lowering.target].compiler and lowering.dialect == "in_place"
    return UNMARKED if is_marked and lowering.precision == "fp32" else ""


def input_metadata(signature: GraphSignature) -> TensorMetadata:
    """Polygraphy's description of the inputs, in the dtypes that are fed."""
    metadata = TensorMetadata()
    for spec in signature.inputs:
        shape = [dim if isinstance(dim, int) else None for dim in spec.dims]
        metadata.add(spec.name, held_dtype(spec), shape)
    return metadata


class OnnxGraphRunner(OnnxrtRunner):  # type: ignore[misc] # Polygraphy ships no types
    """Polygraphy's runner on the shared thread pool, checked against the graph's signature."""

    def __init__(
        self,
        path: Path,
        signature: GraphSignature,
        lowering: Lowering,
        provider: str,
        products: str | None = None,
    ) -> None:
        super().__init__(sess=None, name=f"onnx {path.name}")
        self._path, self._signature, self._provider = path, signature, provider
        self._rewriting = rewriting(lowering)
        self._form, self._products = lowering.weight_form(signature.kind), products

    def activate_impl(self) -> None:
        """Open the session, and check its inputs and outputs against the signature."""
        with ExitStack() as temporary:
            try:
                self.sess = self._session(temporary)
            except Exception as exc:  # onnxruntime raises bare pybind exceptions of many types
                raise BackendError(f"it does not load: {exc}") from exc
        found = self.sess.get_providers()[0]
        if found != self._provider:
            raise BackendError(f"it runs on {found}, wanted {self._provider}")
        faults = self._differences("inputs", self.sess.get_inputs(), self._signature.inputs)
        faults += self._differences("outputs", self.sess.get_outputs(), self._signature.outputs)
        if faults:
            raise BackendError("; ".join(faults))

    def _session(self, temporary: ExitStack) -> Any:
        options = graph_session_options(
            self._form, self._products, shares_arena=self._provider == CPU
        )
        options.log_severity_level = 4  # errors are raised; do not print them as well
        model: str | bytes = native_path(self._path)
        if self._rewriting == WIDENED:
            from mod_edge.export.widen import write_widened

            # Only here: a device may have no folder for temporary files. On Linux the weights stay
            # mapped after their file is removed.
            folder = temporary.enter_context(TemporaryDirectory())
            model = native_path(write_widened(self._path, Path(folder)))
        elif self._rewriting == UNMARKED:
            import onnx

            from mod_edge.export.lower import without_decomposable

            proto = onnx.load(str(self._path), load_external_data=False)
            model = without_decomposable(proto).SerializeToString()
            options.add_session_config_entry(WEIGHTS_FOLDER_KEY, str(self._path.parent))
        providers = [(self._provider, PROVIDER_OPTIONS[self._provider])]
        return onnxruntime.InferenceSession(model, options, providers=providers)

    def _differences(
        self, title: str, values: Sequence[Any], specs: Sequence[TensorSpec]
    ) -> list[str]:
        found = names_dtypes_dims(values)
        wanted = {(spec.name, held_dtype(spec).name, spec.dims) for spec in specs}
        if found == wanted:
            return []
        return [f"its {title} are {sorted(found - wanted)}, wanted {sorted(wanted - found)}"]
