"""The exporter's check on `in_place` layers: healthy ones pass, every planted fault raises."""

import pytest

from mod_edge.errors import ExportError
from mod_edge.export.bundle_writer import graph_weights
from mod_edge.export.check import ALLOWED_RELATIVE_ERROR
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import preset_config
from mod_edge.plan.signature import layer_signature
from mod_edge.plan.targets import Lowering
from tests.conftest import CAPACITY
from tests.export import graph_faults, in_place_faults
from tests.export.test_check import numbers_of

pytestmark = pytest.mark.numeric

CONFIG = preset_config("tiny")
FP32, FP16 = (Lowering("cuda", precision, CAPACITY) for precision in ("fp32", "fp16"))
# These faults change ops that only delta layers have.
DELTA_ONLY = {
    graph_faults.past_of_zeros,
    graph_faults.ignored_past,
    graph_faults.equal_shares,
    graph_faults.largest_scores_only,
    graph_faults.unmasked_future,
    graph_faults.other_groups,
}
SHARED = [
    fault
    for fault in graph_faults.ATTENTION_FAULTS + graph_faults.ROUTING_FAULTS
    if fault not in DELTA_ONLY
]
CACHE_FAULTS = in_place_faults.CACHE_FAULTS
CASES = [
    *((1, fault, FP32) for fault in SHARED),
    # Half precision on the MoD layer alone: a dense layer's cache has the same nodes.
    *((0, fault, FP32) for fault in CACHE_FAULTS),
    *(
        (1, fault, lowering)
        for fault in CACHE_FAULTS + in_place_faults.SELECTION_FAULTS
        for lowering in (FP32, FP16)
    ),
]


@pytest.fixture
def error_of(bundle_for, tiny_checkpoint, tmp_path):
    """`error_of(index, fault=None, lowering=FP32)`: the layer's error with a fault or without."""

    def measure(index, fault=None, lowering=FP32):
        signature = layer_signature(CONFIG, index, lowering)
        source = bundle_for(lowering.target, lowering.precision) / signature.file
        path = graph_faults.copy_graph(source, tmp_path, fault)
        weights = dict(graph_weights(Checkpoint(tiny_checkpoint), signature))
        return numbers_of(path, signature, weights, lowering)

    return measure


@pytest.mark.parametrize("lowering", [FP32, FP16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("index", [0, 1], ids=["dense", "mod"])
def test_a_healthy_layer_passes(error_of, index, lowering):
    assert error_of(index, None, lowering) <= ALLOWED_RELATIVE_ERROR[lowering.precision] / 5


@pytest.mark.parametrize(
    ("index", "fault", "lowering"),
    CASES,
    ids=[
        f"{'mod' if index else 'dense'}-{fault.__name__}-{lowering.precision}"
        for index, fault, lowering in CASES
    ],
)
def test_every_planted_fault_is_an_export_error(error_of, index, fault, lowering):
    with pytest.raises(ExportError, match="differs from the reference"):
        error_of(index, fault, lowering)
