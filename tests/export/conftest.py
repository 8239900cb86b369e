"""Topologies of the tiny geometry, read back from its bundle, so that no test traces them anew."""

from dataclasses import replace

import onnx
import pytest
from onnx import TensorProto, helper

from mod_edge.checkpoint import Checkpoint
from mod_edge.config import MoDConfig
from mod_edge.export.bundle import export_bundle
from mod_edge.export.onnx_export import Topology, graph_module, linear_weight_names
from mod_edge.presets import preset_config, write_checkpoint
from mod_edge.signature import head_signature, layer_signature, vision_signature


@pytest.fixture(scope="session")
def tiny_config():
    return preset_config("tiny")


@pytest.fixture(scope="session")
def tiny_topologies(tiny_bundle, tiny_config):
    """By kind, the traced topology that the tiny bundle's graphs were written from."""
    signatures = (
        vision_signature(tiny_config),
        layer_signature(tiny_config, 0),
        layer_signature(tiny_config, 1),
        head_signature(tiny_config),
    )
    return {
        signature.kind: topology_from_file(tiny_bundle / signature.file, tiny_config, signature)
        for signature in signatures
    }


def topology_from_file(path, config, signature):
    """The graph at `path` with its external weights turned back into inputs."""
    proto = onnx.load(str(path), load_external_data=False)
    inner = []
    shapes = {}
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            shapes[tensor.name] = tuple(tensor.dims)
            proto.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
        else:
            inner.append(tensor)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(inner)
    return Topology(proto, shapes, linear_weight_names(graph_module(config, signature.kind)))


@pytest.fixture
def no_tracing(monkeypatch, tiny_topologies):
    """`export_bundle` takes the tiny topologies instead of tracing (6 s each)."""
    monkeypatch.setattr(
        f"{export_bundle.__module__}.trace",
        lambda _config, signature: tiny_topologies[signature.kind],
    )


@pytest.fixture
def checkpoint_with(tiny_config, tmp_path):
    """`checkpoint_with(**mod_config)`: a tiny checkpoint that routes another way, or not at all."""

    def make(**mod_config) -> Checkpoint:
        mod = MoDConfig(**mod_config) if mod_config else None
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        config = replace(tiny_config, mod_config=mod)
        write_checkpoint(config, folder, seed=0, on_bytes=lambda _size_bytes: None)
        return Checkpoint(folder)

    return make
