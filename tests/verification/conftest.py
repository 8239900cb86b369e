"""Fixtures of the tests of `mod-edge verify`."""

import functools
from functools import partial
from pathlib import Path

import pytest

from mod_edge.bundle.bundle import open_bundle
from mod_edge.export import bundle_writer
from mod_edge.export.bundle_writer import export_bundle, graph_weights
from mod_edge.export.trace import with_form, write_graph
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import preset_config
from mod_edge.model.quantized import quantize_model
from mod_edge.plan.targets import Lowering
from mod_edge.verification import torch_reference
from mod_edge.verification.reference_graph import ReferenceGraph
from mod_edge.verification.reference_stream import MAX_FRAMES, record_stream
from mod_edge.verification.sample_video import SampleVideo
from mod_edge.verification.torch_reference import TorchReference
from tests.export.topologies import read_topologies, topology_from_file

CONFIG = preset_config("tiny")
CPU_INT8 = Lowering("cpu", "fp32", weight_format="int8")


@pytest.fixture
def recorded(monkeypatch, recorded_stream):
    """Verifying uses the stream that was recorded once, instead of recording it again (3 s)."""
    _, recorder, trace = recorded_stream
    monkeypatch.setattr(
        torch_reference, "record_stream", lambda *_args, **_kwargs: (recorder, trace)
    )


# ---- quantized bundles and graphs, from the traces of unquantized ones ----


@pytest.fixture(scope="session")
def int8_bundle(tiny_checkpoint, tiny_bundle, once):
    """The tiny checkpoint's int8 bundle for target cpu (3 s, once per run): copy it first."""
    topologies = read_topologies(tiny_bundle, CONFIG)

    def quantized(_config, signature, lowering):
        return with_form(topologies[signature.kind], lowering.weight_form(signature.kind))

    def export(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bundle_writer, "trace", quantized)
            export_bundle(Checkpoint(tiny_checkpoint), folder, lowering=CPU_INT8)

    return once("int8", export)


@pytest.fixture(scope="session")
def topology_of(any_bundle):
    """`topology_of(signature, lowering)`: the graph's topology without quantization."""

    def make(signature, lowering):
        target = lowering.target if lowering.dialect == "delta" else "cuda"
        folder = any_bundle(target, lowering.precision)
        return topology_from_file(folder / signature.file, CONFIG, signature)

    return make


@pytest.fixture(scope="session")
def quantized_graph(tiny_checkpoint, topology_of, tmp_path_factory):
    """`quantized_graph(signature, lowering)`: the path of a quantized graph of the checkpoint."""

    @functools.cache
    def make(signature, lowering):
        topology = with_form(topology_of(signature, lowering), lowering.weight_form(signature.kind))
        path = tmp_path_factory.mktemp("quantized") / Path(signature.file).name
        write_graph(topology, graph_weights(Checkpoint(tiny_checkpoint), signature), path)
        return path

    return make


@pytest.fixture(scope="session")
def twin_of(tiny_checkpoint):
    """`twin_of(lowering)`: the reference model of the tiny checkpoint's quantized bundles."""
    return functools.cache(
        lambda lowering: quantize_model(Checkpoint(tiny_checkpoint).load_model(), lowering)
    )


@pytest.fixture(scope="session")
def quantized_recording(tiny_checkpoint, recorded_stream, twin_of):
    """`quantized_recording(signature, lowering)`: the quantized reference on a stream's steps."""
    _, recorder, _ = recorded_stream
    original = partial(graph_weights, Checkpoint(tiny_checkpoint))

    @functools.cache
    def make(signature, lowering):
        graph = ReferenceGraph(twin_of(lowering), signature, lowering, recorder, original)
        return graph.recording()

    return make


@pytest.fixture(scope="session")
def int8_stream(tiny_checkpoint, twin_of):
    """The recorder and the trace of a synthetic video on the int8 reference (3 s)."""
    video = SampleVideo(CONFIG.stream_config.frame_fps, MAX_FRAMES)
    tokenizer = Checkpoint(tiny_checkpoint).tokenizer
    return record_stream(twin_of(CPU_INT8), tokenizer, video, CPU_INT8)


@pytest.fixture
def recorded_int8(monkeypatch, int8_stream):
    """As `recorded`, for the int8 bundle."""
    monkeypatch.setattr(torch_reference, "record_stream", lambda *_args, **_kwargs: int8_stream)


@pytest.fixture(scope="session")
def int8_cost(int8_bundle, int8_stream, tiny_checkpoint):
    """What quantizing costs `int8_stream`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_reference, "record_stream", lambda *_args, **_kwargs: int8_stream)
        return TorchReference(open_bundle(int8_bundle), tiny_checkpoint, None).stream_cost
