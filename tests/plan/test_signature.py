"""Kinds of graph: names, files, weights, and an entry for each kind in every table."""

from dataclasses import replace

import pytest

from mod_edge.bundle.shape_ranges import DIM_RANGES
from mod_edge.config import MoDConfig
from mod_edge.export.graphs import MODULES
from mod_edge.export.step_io import REFERENCES
from mod_edge.model.checkpoint import tensor_shapes
from mod_edge.plan.graph_kind import DENSE, HEAD, KINDS, MOD, REBASE, VISION
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.signature import bundle_signatures, layer_signature, vision_signature
from mod_edge.plan.targets import CPU_FP32, Lowering
from mod_edge.verification.reference_graph import STEPS

DEVICE = Lowering("rtx", "fp16", Rows(90, 50))


@pytest.mark.parametrize(
    "table",
    [DIM_RANGES, MODULES, REFERENCES, STEPS],
    ids=["ranges", "modules", "references", "recorded steps"],
)
def test_every_kind_has_an_entry_in_every_table(table):
    assert table.keys() == set(KINDS)


def test_names_of_kinds_are_unique():
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_a_bundle_has_its_graphs_in_the_order_of_a_step(make_config):
    graphs = bundle_signatures(make_config(mod=MoDConfig()), DEVICE)
    assert [graph.kind for graph in graphs] == [VISION, DENSE, MOD, DENSE, MOD, HEAD, REBASE]
    assert [graph.layer_index for graph in graphs] == [None, 0, 1, 2, 3, None, None]
    layers = [f"layer-0{index}" for index in range(4)]
    assert [graph.name for graph in graphs] == ["vision", *layers, "head", "rebase"]
    files = [f"layers/0{index}.onnx" for index in range(4)]
    assert [graph.file for graph in graphs] == ["vision.onnx", *files, "head.onnx", "rebase.onnx"]


def test_only_a_graph_without_weights_has_no_data_file(make_config):
    graphs = {graph.kind: graph for graph in bundle_signatures(make_config(), DEVICE)}
    assert graphs[MOD].files == ("layers/03.onnx", "layers/03.data")
    assert graphs[REBASE].files == ("rebase.onnx",)


@pytest.mark.parametrize("is_tied", [False, True])
def test_every_tensor_of_a_checkpoint_belongs_to_one_graph_or_is_the_embedding(
    make_config, is_tied
):
    config = make_config(num_layers=12, tie_word_embeddings=is_tied)  # layer 1 is no prefix of 10
    prefixes = [graph.weight_prefixes for graph in bundle_signatures(config, CPU_FP32)]
    for name in tensor_shapes(config):
        owners = [each for each in prefixes if name.startswith(each)]
        assert len(owners) == (name != "model.embed_tokens.weight"), name


def test_a_graphs_weight_names_omit_the_common_prefix(make_config):
    config = make_config()
    layer, vision = layer_signature(config, 3, CPU_FP32), vision_signature(config, CPU_FP32)
    assert layer.weight_name("model.layers.3.router.weight") == "router.weight"
    assert vision.weight_name("connector.0.bias") == "connector.0.bias"
    head = bundle_signatures(config, CPU_FP32)[-1]
    assert head.kind is HEAD
    assert head.weight_name("model.norm.weight") == "norm.weight"
    assert head.weight_name("lm_head.weight") == "lm_head.weight"


def test_only_layers_have_an_index(make_config):
    layer = layer_signature(make_config(), 0, CPU_FP32)
    with pytest.raises(AssertionError, match="only layers have an index"):
        replace(layer, layer_index=None)
