"""onnx's reference evaluator as another backend for small half-precision graphs.

ONNX Runtime's CPU computes float16 in float32 and drops the casts in between, so overflow and
rounding in float16 do not show there. The evaluator computes the graph as written, node by node, at
numpy's speed.
"""

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from mod_edge.errors import BackendError
from mod_edge.plan.graph_kind import HEAD
from mod_edge.plan.signature import GraphSignature
from mod_edge.plan.targets import Lowering
from mod_edge.plan.weight_forms import NBITS_INT8
from mod_edge.verification.graph_backends import GraphBackend, NotRun, input_metadata

NAME = "onnx evaluator"
# numpy multiplies float16 without a BLAS: about 1 GFLOP/s, minutes for a layer of a large model.
MAX_WEIGHT_BYTES = 16 * 2**20


def evaluator_backend(lowering: Lowering) -> GraphBackend | NotRun | None:
    """The backend for fp16 bundles; None for other precisions."""
    if lowering.precision != "fp16":
        return None
    form = lowering.weight_form(HEAD)
    if form is not None and form.op == NBITS_INT8.op:
        return NotRun(NAME, f"{form.op} is onnxruntime's own op, which ONNX does not define")
    if find_spec("onnx") is None:
        return NotRun(NAME, "it needs the onnx package")
    return GraphBackend(NAME, EvaluatorRunner, max_weight_bytes=MAX_WEIGHT_BYTES)


class EvaluatorRunner(BaseRunner):  # type: ignore[misc] # Polygraphy ships no types
    """Polygraphy's runner over `onnx.reference.ReferenceEvaluator`."""

    def __init__(self, path: Path, signature: GraphSignature) -> None:
        super().__init__(name=f"{NAME} {path.name}")
        self._path, self._signature = path, signature
        self._evaluator: Any = None

    def activate_impl(self) -> None:
        """Load the graph with its weights."""
        import onnx
        from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
        from onnx.reference import ReferenceEvaluator

        try:
            model = onnx.load(str(self._path), load_external_data=False)
            # onnx opens no links, and in the Hugging Face Hub's cache all files are links.
            for tensor in filter(uses_external_data, model.graph.initializer):
                entries = {entry.key: entry for entry in tensor.external_data}
                location = entries["location"].value
                if Path(location).name != location:  # the exporter writes them beside the graph
                    raise ValueError(f"its weights are in {location!r}, outside its folder")
                data = (self._path.parent / location).resolve()
                entries["location"].value = data.name
                load_external_data_for_tensor(tensor, str(data.parent))
            self._evaluator = ReferenceEvaluator(model)
        except Exception as exc:  # protobuf's and onnx's own types
            raise BackendError(f"it does not load: {exc}") from exc

    def deactivate_impl(self) -> None:
        """Release the graph."""
        self._evaluator = None

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Names, dtypes and dims of the inputs."""
        return input_metadata(self._signature)

    def infer_impl(self, feed_dict: dict[str, Any]) -> dict[str, Any]:
        """All outputs by name."""
        started = time.perf_counter()
        with np.errstate(all="ignore"):  # overflows show in the outputs
            outputs = self._evaluator.run(None, dict(feed_dict))
        self.inference_time = time.perf_counter() - started
        return dict(zip(self._evaluator.output_names, outputs, strict=True))
