"""A stream on ONNX Runtime: its steps, their bounds, and buffers that never move."""

import shutil
import threading
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from mod_edge.bundle.bundle import open_bundle
from mod_edge.bundle.manifest import CONFIG_FILE
from mod_edge.config import read_config
from mod_edge.errors import BackendError, CacheError
from mod_edge.native import int8_products
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.layout import FRAME, step_layout
from mod_edge.plan.targets import CPU_FP32, Lowering
from mod_edge.plan.weight_forms import INT4, INT8
from mod_edge.runtime.cpu import onnx_model
from mod_edge.runtime.cpu.onnx_model import OnnxModel, OnnxStream
from mod_edge.runtime.loaded_model import StreamLimits
from tests.runtime.streams import onnx_stream

pytestmark = pytest.mark.numeric

CAPACITY = Rows(dense=200, mod=120)
LIMITS = {"max_step_tokens": 40, "frames_per_step": 3}
NO_PAST = Rows(0, 0)
# The same rows in one step or in several are multiplied in different blocks: logits up to 15 differ
# by 1.4e-5, measured; one row of the past too many differs by 17.
ATOL_LOGITS = 1e-4


@pytest.fixture(scope="module")
def config(tiny_bundle):
    return read_config(tiny_bundle / CONFIG_FILE)


@pytest.fixture
def stream(tiny_bundle):
    return onnx_stream(tiny_bundle, CAPACITY, **LIMITS)


@pytest.fixture(scope="module")
def embeds(config):
    """(6, N, D) frame embeddings."""
    shape = (6, config.frame_num_tokens, config.text_config.hidden_size)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


class Feeder:
    """Feeds steps one after another and counts the rows."""

    def __init__(self, stream, config):
        self.stream, self.config, self.past = stream, config, NO_PAST

    def feed(self, pieces, token_ids, embeds=None):
        """Feed the next step and return the logits of all its rows."""
        layout = step_layout(pieces, self.config.frame_num_tokens, self.config.num_kept)
        self.stream.step(layout, token_ids, embeds, position=self.past.dense, past=self.past)
        self.past = self.past.plus(Rows(layout.num_tokens, layout.num_rows))
        rows = range(layout.num_tokens)
        return np.concatenate([self.stream.logits([row]).copy() for row in rows])


@pytest.fixture
def feeder(stream, config):
    return Feeder(stream, config)


def test_a_model_counts_the_seconds_of_the_graphs_of_all_its_streams(tiny_bundle, config, embeds):
    with OnnxModel(open_bundle(tiny_bundle), StreamLimits(CAPACITY, **LIMITS)) as model:
        streams = [model.open_stream() for _ in range(2)]
        counted = [model.graph_seconds]
        for stream in streams:
            Feeder(stream, config).feed((1, FRAME), [5], embeds[:1])
            counted.append(model.graph_seconds)
    assert counted[0] == 0
    assert counted[0] < counted[1] < counted[2]


def test_a_graph_that_does_not_load_is_a_backend_error(tiny_bundle, tmp_path):
    bundle = open_bundle(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (bundle.folder / "layers" / "03.onnx").write_bytes(b"not a graph")
    with pytest.raises(
        BackendError, match=r"cannot load .*03\.onnx: .*export the checkpoint again"
    ):
        OnnxModel(bundle, StreamLimits(CAPACITY, **LIMITS))


def test_graphs_are_opened_several_at_a_time(tiny_bundle, monkeypatch):
    monkeypatch.setattr(onnx_model, "num_threads", lambda: 2)
    bundle = open_bundle(tiny_bundle)
    two = bundle.signatures("vision") + bundle.signatures("head")
    both_are_opening = threading.Barrier(2)

    def open_graph(signature):
        both_are_opening.wait(timeout=5)
        return signature

    assert onnx_model._opened(bundle, two, open_graph) == two


def test_graphs_are_opened_from_the_largest_and_returned_in_order(tiny_bundle, monkeypatch):
    monkeypatch.setattr(onnx_model, "num_threads", lambda: 1)
    bundle, sizes = open_bundle(tiny_bundle), []

    def open_graph(signature):
        sizes.append(sum((bundle.folder / file).stat().st_size for file in signature.files))
        return signature

    assert onnx_model._opened(bundle, bundle.signatures(), open_graph) == bundle.signatures()
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_frames_encoded_together_equal_frames_encoded_one_by_one(stream, config):
    side = config.vision_config.image_size
    frames = np.random.default_rng(1).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    together = stream.encode(frames).copy()
    assert together.shape == (3, config.frame_num_tokens, config.text_config.hidden_size)
    for number in range(3):
        alone = stream.encode(frames[number : number + 1])
        np.testing.assert_allclose(alone[0], together[number], rtol=0, atol=1e-5)


# ---- steps ----


def test_a_step_that_onnxruntime_cannot_run_is_an_error_with_what_to_do(
    feeder, config, monkeypatch
):
    def fails(_session, _binding, _options=None):
        raise RuntimeError("Failed to allocate memory for requested buffer of size 1048576")

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", fails)
    says = r"layer-00 does not run: Failed to allocate .*; if memory is short, .*--window"
    with pytest.raises(BackendError, match=says):
        feeder.feed((2,), [5, 5])


def test_the_first_step_has_no_past(feeder, embeds):
    """Text has the same logits alone and with a frame after it."""
    logits = feeder.feed((3,), [5, 6, 7])
    assert np.isfinite(logits).all()
    feeder.past = NO_PAST
    longer = feeder.feed((3, FRAME), [5, 6, 7], embeds[:1])
    np.testing.assert_allclose(longer[:3], logits, rtol=0, atol=ATOL_LOGITS)


def test_a_stream_in_one_step_or_in_many_has_the_same_logits(feeder, embeds):
    together = feeder.feed((3, FRAME, 1, FRAME, 2), [5, 6, 7, 8, 9, 10], embeds[:2])
    feeder.past = NO_PAST
    parts = [
        feeder.feed((3,), [5, 6, 7]),
        feeder.feed((FRAME, 1), [8], embeds[:1]),
        feeder.feed((FRAME, 1), [9], embeds[1:2]),
        feeder.feed((1,), [10]),
    ]
    np.testing.assert_allclose(np.concatenate(parts), together, rtol=0, atol=ATOL_LOGITS)


def test_the_past_matters(feeder):
    logits = feeder.feed((2,), [5, 6])
    again = feeder.feed((2,), [5, 6])
    assert np.abs(again - logits).max() > 0.1


def test_kept_positions_ascend_and_belong_to_the_last_step(feeder, config, embeds):
    feeder.feed((2, FRAME, 1, FRAME), [5, 6, 7], embeds[:2])
    two = {layer: kept.copy() for layer, kept in feeder.stream.kept.items()}
    assert two.keys() == set(config.mod_layers)
    for kept in two.values():
        assert kept.shape == (2, config.num_kept)
        assert (np.diff(kept, axis=1) > 0).all()
        assert kept.min() >= 0
        assert kept.max() < config.frame_num_tokens
    feeder.feed((1,), [5])
    assert all(kept.shape == (0, config.num_kept) for kept in feeder.stream.kept.values())


def test_a_frame_taken_back_leaves_no_trace(tiny_bundle, config, embeds):
    """Rows after `past` are overwritten: results equal a stream that never had them."""
    results = []
    for takes_back in (True, False):
        feeder = Feeder(onnx_stream(tiny_bundle, CAPACITY, **LIMITS), config)
        feeder.feed((3, FRAME), [5, 6, 7], embeds[:1])
        if takes_back:
            past = feeder.past
            feeder.feed((1, FRAME, 1, FRAME), [8, 8], embeds[1:3])
            feeder.past = past
        results.append(feeder.feed((4,), [9, 10, 11, 12]))
        results.append(feeder.feed((1, FRAME), [8], embeds[3:4]))
    # Kernels may compute differently at other addresses: measured 0.
    np.testing.assert_allclose(results[0], results[2], rtol=0, atol=ATOL_LOGITS)
    np.testing.assert_allclose(results[1], results[3], rtol=0, atol=ATOL_LOGITS)


def test_steps_after_an_eviction_append_after_the_remaining_rows(feeder, embeds):
    feeder.feed((3,), [5, 6, 7])
    feeder.feed((1, FRAME), [8], embeds[:1])
    feeder.feed((1, FRAME), [8], embeds[1:2])
    dropped = Rows(11, 3)
    feeder.stream.evict(Eviction(Rows(3, 3), dropped, feeder.past, num_evicted=11))
    buffers = feeder.stream._cache.layers
    left = feeder.past.minus(dropped)
    ends = [left.mod if layer.is_mod else left.dense for layer in buffers]
    before = [layer.key[:end].copy() for layer, end in zip(buffers, ends, strict=True)]
    layout = step_layout((2,), feeder.config.frame_num_tokens, feeder.config.num_kept)
    feeder.stream.step(layout, [9, 10], None, position=feeder.past.dense, past=left)
    for layer, end, key in zip(buffers, ends, before, strict=True):
        np.testing.assert_array_equal(layer.key[:end], key)
        assert layer.key[end : end + 2].all(axis=(1, 2)).all()
        assert layer.value[end : end + 2].any(axis=(1, 2)).all()


# ---- bounds ----


@pytest.mark.parametrize(
    ("num_tokens", "past", "says"),
    [
        (
            4,
            Rows(197, 90),
            r"a step of 4 tokens \(4 rows in MoD layers\) after 197 \(90\) does not fit: "
            r"the cache has 200 \(120\) rows, a step at most 40 tokens",
        ),
        (4, Rows(150, 117), r"after 150 \(117\) does not fit"),
        (41, NO_PAST, r"a step of 41 tokens .* a step at most 40 tokens"),
    ],
    ids=["dense rows", "MoD rows", "longer than planned"],
)
def test_a_step_out_of_bounds_is_a_cache_error_and_writes_nothing(
    feeder, config, num_tokens, past, says
):
    feeder.feed((3,), [5, 6, 7])
    before = [layer.key.copy() for layer in feeder.stream._cache.layers]
    layout = step_layout((num_tokens,), config.frame_num_tokens, config.num_kept)
    with pytest.raises(CacheError, match=says):
        feeder.stream.step(layout, [1] * num_tokens, None, position=past.dense, past=past)
    for layer, key in zip(feeder.stream._cache.layers, before, strict=True):
        np.testing.assert_array_equal(layer.key, key)


def test_a_step_may_fill_the_cache(feeder, config):
    layout = step_layout((4,), config.frame_num_tokens, config.num_kept)
    feeder.stream.step(layout, [1, 2, 3, 4], None, position=196, past=Rows(196, 116))


def test_a_step_writes_only_its_own_rows(feeder, embeds):
    """Graphs write into the cache: one row too many would overwrite later rows."""
    cache = feeder.stream._cache
    for layer in cache.layers:
        layer.key[:], layer.value[:] = 77.0, 88.0
    past = Rows(20, 9)
    feeder.past = past
    feeder.feed((2, FRAME), [5, 6], embeds[:1])
    for layer in cache.layers:
        start, end = (
            (past.mod, feeder.past.mod) if layer.is_mod else (past.dense, feeder.past.dense)
        )
        for buffer, untouched in ((layer.key, 77.0), (layer.value, 88.0)):
            assert (buffer[:start] == untouched).all()
            assert (buffer[end:] == untouched).all()
            assert (buffer[start:end] != untouched).all()


# ---- memory ----


def addresses_of(stream):
    model = stream._model
    arrays = [
        *(buffer for layer in stream._cache.layers for buffer in (layer.key, layer.value)),
        *model.hidden,
        *(model.cos, model.sin, stream._frame_embeds, model._frame_embeds),
        *(model._head_rows, model._logits),
        *model.kept.values(),
    ]
    return [array.ctypes.data for array in arrays]


def test_no_buffer_moves_over_steps_and_evictions(feeder, embeds):
    before = addresses_of(feeder.stream)
    for number in range(5):
        feeder.feed((1, FRAME), [5], embeds[number : number + 1])
    sink, dropped = Rows(11, 3), Rows(22, 6)
    feeder.stream.evict(Eviction(sink, dropped, feeder.past, num_evicted=22))
    feeder.past = feeder.past.minus(dropped)
    feeder.feed((3,), [5, 6, 7])
    assert addresses_of(feeder.stream) == before


def test_a_step_allocates_nothing_of_the_caches_size(tiny_bundle, config, embeds):
    capacity = Rows(40_000, 30_000)
    feeder = Feeder(onnx_stream(tiny_bundle, capacity, **LIMITS), config)
    feeder.past = Rows(30_000, 20_000)
    layout = step_layout((1, FRAME), config.frame_num_tokens, config.num_kept)
    smallest = min(layer.key.nbytes for layer in feeder.stream._cache.layers)
    for measured in (False, True):  # the first step of a shape also fills caches
        if measured:
            tracemalloc.start()
        feeder.stream.step(layout, [5], embeds[:1], position=30_000, past=feeder.past)
        feeder.stream.logits([layout.num_tokens - 1])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # measured 4.5 kB; a copy of the smallest buffer alone would be 3.8 MB
    assert peak_bytes < smallest / 50


# ---- the in_place dialect ----


@pytest.fixture
def copies_of(bundle_for, config, capfd, monkeypatch):
    """`copies_of(stream_class)`: how many cache copies ONNX Runtime logs in a step."""

    def open_verbose(path, options, providers):
        options.log_severity_level = 2
        return onnxruntime.InferenceSession(path, options, providers=providers)

    bundle = open_bundle(bundle_for("cuda", "fp32"))
    verbose = SimpleNamespace(InferenceSession=open_verbose, __version__=onnxruntime.__version__)
    monkeypatch.setattr("mod_edge.runtime.cpu.onnx_model.onnxruntime", verbose)

    def count(stream_class):
        limits = StreamLimits(bundle.lowering.capacity, **LIMITS)
        stream = stream_class(OnnxModel(bundle, limits))
        layout = step_layout((2,), config.frame_num_tokens, config.num_kept)
        stream.step(layout, [5, 6], None, position=0, past=NO_PAST)
        return capfd.readouterr().err.count("in-place optimization not activated")

    return count


class Unaliased(OnnxStream):
    """Binds past and present at two addresses: same results, but each step copies the cache."""

    def _bind_whole_cache(self):
        super()._bind_whole_cache()
        self._others = [buffers.key.copy() for buffers in self._cache.layers]
        for layer, other in zip(self._layers, self._others, strict=True):
            layer.bind_output("present_key", other)


def test_a_step_does_not_copy_the_cache(copies_of):
    assert copies_of(OnnxStream) == 0


def test_a_cache_bound_at_two_addresses_is_copied_and_onnxruntime_logs_it(copies_of, config):
    assert copies_of(Unaliased) == config.text_config.num_hidden_layers


def test_a_bf16_bundle_is_an_error_with_what_to_do(bundle_for):
    bundle = open_bundle(bundle_for("rtx", "bf16"))
    with pytest.raises(BackendError, match=r"is in bf16, .* --precision fp16 or fp32"):
        OnnxModel(bundle, StreamLimits(bundle.lowering.capacity, **LIMITS))


@pytest.mark.parametrize("weights", [INT8, INT4])  # a bundle's vision is int8 in both
def test_the_name_says_how_int8_weights_are_multiplied(monkeypatch, weights):
    monkeypatch.setattr(onnx_model, "exact_int8_products", lambda: "u8 x u8")
    lowering = Lowering("cpu", "fp32", weight_format=weights)
    name = onnx_model._environment(lowering)
    assert name.endswith(f", {weights} weights, int8 products as u8 x u8")
    assert "int8" not in onnx_model._environment(CPU_FP32)


def test_a_cpu_that_multiplies_int8_weights_wrongly_runs_no_int8_bundle(tiny_bundle, monkeypatch):
    bundle = open_bundle(tiny_bundle)
    int8 = Lowering("cpu", "fp32", weight_format=INT8)
    bundle = replace(bundle, manifest=replace(bundle.manifest, lowering=int8))
    monkeypatch.setattr(int8_products, "_are_exact", lambda products: False)
    int8_products.exact_int8_products.cache_clear()
    with pytest.raises(BackendError, match=r"wrongly on this CPU; upgrade it.*--weights as-dtype"):
        OnnxModel(bundle, StreamLimits(CAPACITY, **LIMITS))
