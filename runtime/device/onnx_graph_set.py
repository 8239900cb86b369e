"""ONNX Runtime's CUDA provider on a `DeviceModel`'s memory and stream, in place of engines.

All tensors are bound by device address, nothing is copied to the host, and a run does not wait for
the device. It is an error if the provider is missing or leaves real work to the CPU.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from mod_edge.bundle.bundle import Bundle
from mod_edge.errors import BackendError
from mod_edge.native.captured_stderr import captured_stderr
from mod_edge.native.installed import install_command
from mod_edge.native.native_path import native_path
from mod_edge.native.onnx_session import session_options
from mod_edge.native.package_faults import replace_onnxruntime
from mod_edge.plan.signature import GraphSignature

PROVIDER = "CUDAExecutionProvider"
DEVICE = "cuda"
# Ops that must run on the device. Others compute shapes, which is fine on the host.
DEVICE_OPS = frozenset(
    [
        "Attention",
        "Conv",
        "Gemm",
        "LayerNormalization",
        "MatMul",
        "ScatterND",
        "Softmax",
        "TensorScatter",
        "TopK",
    ]
)
WEIGHTS_OUTSIDE_ARENA = "session.use_device_allocator_for_initializers"
RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"


class OnnxContext:
    """One session's bindings; see `GraphContext`."""

    is_capturable = False

    def __init__(self, session: Any, signature: GraphSignature, device: str) -> None:
        """Make empty bindings; `device` is where the addresses will be."""
        self._session = session
        self._signature = signature
        self._device = device
        self._binding = session.io_binding()
        self._options = onnxruntime.RunOptions()
        # The stream keeps the order; the host waits only where it reads.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def bind(self, addresses: Mapping[str, int], sizes: Mapping[str, int]) -> None:
        """See `GraphContext`."""
        for specs, bind in (
            (self._signature.inputs, self._binding.bind_input),
            (self._signature.outputs, self._binding.bind_output),
        ):
            for spec in specs:
                shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.dims]
                dtype = np.dtype(spec.dtype)
                bind(spec.name, self._device, 0, dtype, shape, addresses[spec.name])

    def enqueue(self) -> None:
        """See `GraphContext`."""
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as exc:  # onnxruntime raises bare pybind exceptions of many types
            raise BackendError(
                f"{self._signature.name} does not run on {PROVIDER}: {exc}; report it, and use "
                "--device cpu meanwhile"
            ) from exc


class OnnxGraphSet:
    """One session per graph, all on one provider and one stream."""

    can_capture = False  # each session would need its own graph and addresses
    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        stream: int,
        bundle: Bundle,
        *,
        provider: str = PROVIDER,
        device: str = DEVICE,
    ) -> None:
        """Load all graphs.

        Args:
            stream: CUDA stream to run on.
            bundle: with every layer.
            provider: ONNX Runtime's name of the provider.
            device: ONNX Runtime's name of the provider's memory.

        Raises:
            BackendError: a graph does not load on the provider.
        """
        self._device = device
        options = {}
        if provider == PROVIDER:
            # With TF32's 10 bits of mantissa a router would keep other tokens.
            options = {
                "device_id": "0",
                "user_compute_stream": str(stream),
                "use_tf32": "0",
                "arena_extend_strategy": "kSameAsRequested",  # the default takes powers of two
            }
        self._graphs = {
            signature.name: (signature, _open(bundle.folder / signature.file, provider, options))
            for signature in bundle.signatures()
        }

    def context(self, name: str, _profile: str, *, is_captured: bool = False) -> OnnxContext:
        """A new context of the graph `name`, for steps of any shape."""
        assert not is_captured, "check can_capture first"
        signature, session = self._graphs[name]
        return OnnxContext(session, signature, self._device)

    def close(self) -> None:
        """Release the sessions."""
        self._graphs.clear()


def _open(path: Path, provider: str, provider_options: dict[str, str]) -> Any:
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise BackendError(
            f"this onnxruntime has {', '.join(available)}, wanted {provider}; install it with: "
            f"{replace_onnxruntime('gpu')}; or use --device cpu"
        )
    name = native_path(path)
    options = session_options(shares_arena=False)
    options.enable_mem_pattern = False  # kept for every shape seen
    options.add_session_config_entry(WEIGHTS_OUTSIDE_ARENA, "1")
    options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    with captured_stderr() as captured:
        try:
            session = onnxruntime.InferenceSession(
                name, options, providers=[(provider, provider_options)]
            )
        except Exception as exc:  # onnxruntime raises bare pybind exceptions of many types
            raise BackendError(
                f"onnxruntime cannot load {path} on {provider}: {exc}; see: mod-edge doctor"
            ) from exc
    found = session.get_providers()[0]
    if found != provider:
        reason = " ".join(captured.text.split())[-300:]
        raise BackendError(
            f"{path.name} runs on {found}, wanted {provider}{f' ({reason})' if reason else ''}; "
            f"install its libraries (mod-edge doctor; {install_command('gpu')}), or use "
            "--device cpu"
        )
    strays = ops_elsewhere(session, provider)
    if strays:
        raise BackendError(
            f"{path.name}: onnxruntime {onnxruntime.__version__} leaves {', '.join(strays)} to "
            f"another provider than {provider}; upgrade onnxruntime-gpu, or use --device cpu"
        )
    return session


def ops_elsewhere(session: Any, provider: str) -> list[str]:
    """Types of `DEVICE_OPS` on another provider; empty if this version does not report it."""
    if not hasattr(session, "get_provider_graph_assignment_info"):  # before onnxruntime 1.24
        return []
    return sorted(
        {
            node.op_type
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name != provider
            for node in part.get_nodes()
            if node.op_type in DEVICE_OPS
        }
    )
