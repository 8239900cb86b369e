"""A checkpoint with an outlier as trained models have them, on which one activation scale fails.

In SmolLM2-135M, one token turns on one neuron of one MLP, whose down projection writes 24,109 into
one channel of that token's hidden state; all other tokens stay below 658. Here the same is planted
in random weights. The judge is the reference with the weights as they are.
"""

import onnxruntime
import pytest
import torch
from torch.nn.functional import cosine_similarity

from mod_edge.export.step_io import Past, StepIo
from mod_edge.export.trace import trace, write_graph
from mod_edge.native.native_path import native_path
from mod_edge.native.onnx_session import session_options
from mod_edge.plan.layout import step_layout
from mod_edge.plan.signature import layer_signature
from mod_edge.plan.targets import Lowering
from mod_edge.plan.weight_forms import INT8
from tests.export.graph_faults import copy_graph
from tests.export.quantized_faults import one_activation_scale

pytestmark = pytest.mark.numeric

INT8_ON_CPU = Lowering("cpu", "fp32", weight_format=INT8)
NUM_TOKENS, OUTLIER_TOKEN = 29, 5  # of a step; the outlier's position, and its id
LAYER, TRIGGER, NEURON, MASSIVE = 1, 7, 11, 31  # a layer, a channel, a neuron, a channel
LARGEST = 24_000
# Cosine of the other tokens' hidden states after the last layer with the reference's. Measured with
# a scale a row: mean 0.995, least token 0.977; with a scale a tensor: 0.828 and 0.683, but without
# the outlier (on the quantized reference) 0.990 and 0.929.
LEAST_MEAN_COSINE, LEAST_COSINE = 0.985, 0.95
FAILING_MEAN_COSINE, FAILING_COSINE = 0.93, 0.85


@pytest.fixture(scope="module")
def model(make_config, make_model):
    """Four dense layers with the outlier: one token id alone turns on a neuron."""
    planted = make_model(make_config(mod=None))
    table, layers = planted.model.embed_tokens.weight, planted.model.layers
    table[:, TRIGGER] = 0
    table[OUTLIER_TOKEN, TRIGGER] = 10
    for layer in layers[: LAYER + 1]:  # only the embedding writes the trigger's channel
        layer.self_attn.o_proj.weight[TRIGGER] = 0
        layer.mlp.down_proj.weight[TRIGGER] = 0
    mlp = layers[LAYER].mlp
    for projection in (mlp.gate_proj, mlp.up_proj):
        projection.weight[NEURON] = 0
        projection.weight[NEURON, TRIGGER] = 45.4  # the neuron's output is then 3,000
    mlp.down_proj.weight[MASSIVE] = 0
    mlp.down_proj.weight[:, NEURON] = 0
    mlp.down_proj.weight[MASSIVE, NEURON] = 8
    return planted


@pytest.fixture(scope="module")
def embeds(model):
    """(T, D) of a step's tokens; each id is its position."""
    return model.model.embed_tokens(torch.arange(NUM_TOKENS))


@pytest.fixture(scope="module")
def expected(model, embeds):
    """Hidden states (T, D) after every layer of the reference."""
    layout, positions = (
        step_layout((NUM_TOKENS,), model.config.frame_num_tokens, 0),
        torch.arange(NUM_TOKENS),
    )
    hidden, states = embeds, []
    for layer, cache in zip(model.model.layers, model.empty_caches(), strict=True):
        hidden, _ = layer(hidden, layout, positions, cache)
        states.append(hidden)
    return states


@pytest.fixture(scope="module")
def layer_files(model, tmp_path_factory):
    """The int8 graphs of all layers."""
    folder = tmp_path_factory.mktemp("layers")
    topology = trace(model.config, layer_signature(model.config, 0, INT8_ON_CPU), INT8_ON_CPU)
    paths = []
    for index, layer in enumerate(model.model.layers):
        paths.append(folder / f"{index}.onnx")
        write_graph(topology, layer.state_dict().items(), paths[-1])
    return paths


def hidden_of_graphs(paths, model, embeds):
    """Hidden states (T, D) after the last of these layers, from an empty cache."""
    text = model.config.text_config
    no_rows = torch.zeros(0, text.num_key_value_heads, text.head_dim)
    layout, hidden = step_layout((NUM_TOKENS,), model.config.frame_num_tokens, 0), embeds
    for index, path in enumerate(paths):
        io = StepIo(model.config, layer_signature(model.config, index, INT8_ON_CPU), INT8_ON_CPU)
        inputs = io.layer_inputs(hidden, layout, 0, Past(no_rows, no_rows, 0))
        session = onnxruntime.InferenceSession(
            native_path(path), session_options(), providers=["CPUExecutionProvider"]
        )
        (new_hidden,) = session.run(["new_hidden"], inputs)
        hidden = torch.from_numpy(new_hidden[0])
    return hidden


def cosines_of_other_tokens(ours, theirs):
    others = [token for token in range(NUM_TOKENS) if token != OUTLIER_TOKEN]
    return cosine_similarity(ours[others], theirs[others])


def test_one_token_has_a_massive_channel_and_no_other_token_has(expected):
    for index, hidden in enumerate(expected):
        token, channel = divmod(int(hidden.abs().argmax()), hidden.shape[1])
        if index >= LAYER:
            assert (token, channel) == (OUTLIER_TOKEN, MASSIVE)
            assert hidden[token, channel] == pytest.approx(LARGEST, rel=0.01)
            hidden = hidden.clone()
            hidden[token, channel] = 0
        assert hidden.abs().max() < 100


def test_int8_with_a_scale_a_row_keeps_the_other_tokens(layer_files, model, embeds, expected):
    hidden = hidden_of_graphs(layer_files, model, embeds)
    cosines = cosines_of_other_tokens(hidden, expected[-1])
    assert cosines.mean() > LEAST_MEAN_COSINE
    assert cosines.min() > LEAST_COSINE


def test_int8_with_one_scale_a_tensor_loses_the_other_tokens(
    layer_files, model, embeds, expected, tmp_path
):
    changed = [copy_graph(path, tmp_path, one_activation_scale) for path in layer_files]
    hidden = hidden_of_graphs(changed, model, embeds)
    cosines = cosines_of_other_tokens(hidden, expected[-1])
    assert cosines.mean() < FAILING_MEAN_COSINE
    assert cosines.min() < FAILING_COSINE
