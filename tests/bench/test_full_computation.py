"""Full computation on the sessions of a MoD bundle."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from mod_edge.bench.full_computation import full_computation_model
from mod_edge.bundle.bundle import open_bundle
from mod_edge.config import MoDConfig
from mod_edge.errors import BackendError
from mod_edge.native.onnx_session import session_options
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.layout import frame_pieces, step_layout
from mod_edge.plan.rope import StepAngles
from mod_edge.runtime.cpu.onnx_model import OnnxModel
from mod_edge.runtime.loaded_model import LoadedModel, StreamLimits

pytestmark = pytest.mark.numeric

LIMITS = StreamLimits(Rows(90, 50), max_step_tokens=40, frames_per_step=2)
NUM_PAST = 7
ATOL = 1e-5  # the same graphs in other memory; with a MoD layer in the chain it is 0.1


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return open_bundle(tiny_bundle)


@pytest.fixture
def model(bundle):
    with OnnxModel(bundle, LIMITS) as model:
        yield model


def hidden_by_hand(bundle, layers, hidden):
    """(T, D) hidden states after these layers' graphs, each over a past of zeros."""
    text = bundle.config.text_config
    angles = StepAngles(text, len(hidden))
    cos, sin = (np.empty((len(hidden), text.head_dim // 2), np.float32) for _ in range(2))
    angles.write(NUM_PAST, cos, sin)
    past = np.zeros((NUM_PAST, text.num_key_value_heads, text.head_dim), np.float32)
    for layer in layers:
        path = bundle.folder / "layers" / f"{layer:02d}.onnx"
        session = onnxruntime.InferenceSession(path, session_options())
        inputs = {"hidden": hidden[None], "cos": cos[None], "sin": sin[None]}
        inputs |= {"past_key": past, "past_value": past, "past_length": np.array([NUM_PAST])}
        hidden = session.run(["new_hidden"], inputs)[0][0]
    return hidden


def test_a_step_computes_what_dense_layers_in_every_place_compute(bundle, model):
    config = bundle.config
    num_tokens = config.frame_num_tokens
    layout = step_layout(frame_pieces(2, 1, 1), num_tokens, num_tokens)
    shape = (2, num_tokens, config.text_config.hidden_size)
    frames = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    full = full_computation_model(model, config, LIMITS.capacity)
    with full.open_stream() as stream:
        past = Rows(NUM_PAST, NUM_PAST)
        stream.step(layout, [5, 6], frames, position=NUM_PAST, past=past)
        assert stream.kept == {}
    found = full.hidden[config.text_config.num_hidden_layers % 2][: layout.num_tokens]
    start = np.empty_like(found)
    start[layout.text_index] = model.embedding.rows([5, 6])
    start[layout.frame_index] = frames
    assert config.mod_layers == (1, 3, 5)
    wanted = hidden_by_hand(bundle, [0, 2, 4, 0, 2, 4], start)
    np.testing.assert_allclose(found, wanted, atol=ATOL)


def test_every_layer_has_a_row_for_every_token(model):
    full = full_computation_model(model, model.config, LIMITS.capacity)
    assert full.config.mod_layers == ()
    assert full.limits.capacity == Rows(90, 90)
    assert model.limits.capacity == Rows(90, 50)
    assert model.config.mod_layers


@pytest.mark.parametrize(
    ("mod", "reason"),
    [(None, "no MoD layers"), (MoDConfig(insertion="all"), "no dense layers")],
    ids=["full", "all"],
)
def test_a_model_with_layers_of_one_kind_has_nothing_to_compare(model, mod, reason):
    config = replace(model.config, mod_config=mod)
    assert reason in full_computation_model(model, config, LIMITS.capacity)


def test_a_backend_without_a_graph_for_each_layer_says_so(bundle):
    class OtherModel(LoadedModel):
        name = "one graph"

        def open_stream(self):
            raise NotImplementedError

        def encode(self, frames):
            raise NotImplementedError

    with pytest.raises(BackendError, match="one graph runs its layers in their own order only"):
        full_computation_model(OtherModel(), bundle.config, LIMITS.capacity)
