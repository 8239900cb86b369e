"""Topologies of the tiny geometry, read back from its bundle so that tests need not trace them."""

import onnx
from onnx import TensorProto, helper

from mod_edge.export.graphs import graph_module, linear_weight_names
from mod_edge.export.stored_tensor import ONNX_DTYPES
from mod_edge.export.trace import Topology, with_form
from mod_edge.plan.signature import head_signature, layer_signature, vision_signature
from mod_edge.plan.targets import CPU_FP32


def read_topologies(bundle, config):
    """By kind, the traced topology that the bundle's graphs were written from."""
    signatures = (
        vision_signature(config, CPU_FP32),
        layer_signature(config, 0, CPU_FP32),
        layer_signature(config, 1, CPU_FP32),
        head_signature(config, CPU_FP32),
    )
    return {
        signature.kind: topology_from_file(bundle / signature.file, config, signature)
        for signature in signatures
    }


def untraced(topologies, _config, signature, lowering):
    """What `trace` returns, from topologies of unquantized graphs by kind."""
    form = lowering.weight_form(signature.kind)
    topology = topologies[signature.kind]
    return topology if form is None else with_form(topology, form)


def topology_from_file(path, config, signature):
    """The graph at `path` with its external weights turned back into inputs."""
    proto = onnx.load(str(path), load_external_data=False)
    inner = []
    shapes, dtypes = {}, {}
    torch_dtypes = {onnx_dtype: dtype for dtype, onnx_dtype in ONNX_DTYPES.items()}
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            shapes[tensor.name] = tuple(tensor.dims)
            dtypes[tensor.name] = torch_dtypes[tensor.data_type]
            proto.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
        else:
            inner.append(tensor)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(inner)
    module = graph_module(config, signature.kind, CPU_FP32)
    return Topology(proto, shapes, dtypes, linear_weight_names(module))
