"""Ranges of engines: every dim of every input has one, and every step lies within it."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mod_edge.bundle.shape_ranges import (
    ShapeRange,
    StepLimits,
    optimization_profiles,
    profile_for,
    step_limits,
)
from mod_edge.config import MoDConfig
from mod_edge.errors import CacheError, ConfigError
from mod_edge.plan.kv_window import KvWindow, Rows
from mod_edge.plan.signature import bundle_signatures
from mod_edge.plan.targets import TARGETS, Lowering
from mod_edge.profiles import load_profile, profile_names
from mod_edge.runtime.loaded_model import StreamState
from mod_edge.runtime.stepper import Stepper
from tests.conftest import odd_config
from tests.frame_layouts import one_token, without_interval

CAPACITY = Rows(dense=300, mod=180)
LIMITS = StepLimits(max_step_tokens=100, opt_frames=3, max_frames=5, capacity=CAPACITY)
CONFIGS = {
    "full": odd_config(mod=None),
    "interleaved": odd_config(),
    "all": odd_config(mod=MoDConfig("all", 0.5)),
    "three heads": odd_config(num_key_value_heads=3, mod=MoDConfig("all_deep", 1.0)),
    "uniform": odd_config(mod=MoDConfig(selection="uniform")),
    "without interval": without_interval(odd_config()),
    "one token, without interval": one_token(odd_config()),
}
LOWERINGS = [
    Lowering(name, precision, CAPACITY if target.dialect == "in_place" else None)
    for name, target in TARGETS.items()
    for precision in target.precisions
]

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
every_lowering = pytest.mark.parametrize(
    "lowering", LOWERINGS, ids=[f"{lowering.target} {lowering.precision}" for lowering in LOWERINGS]
)


def signatures_of(config, lowering):
    return {signature.kind.name: signature for signature in bundle_signatures(config, lowering)}


def is_within(shape, allowed):
    return len(shape) == len(allowed.min) and all(
        low <= size <= high for low, size, high in zip(allowed.min, shape, allowed.max, strict=True)
    )


def sizes_of(layout):
    """The step's sizes by letter."""
    return {
        "X": layout.text_index.size,
        "F": layout.num_frames,
        "T": layout.num_tokens,
        "R": layout.num_rows,
    }


class RecordingStream(StreamState):
    """Computes nothing and records layouts and pasts."""

    name = "recording"

    def __init__(self, config):
        self.steps = []
        self.num_rows_read = []
        self._vocab_size = config.text_config.vocab_size

    def encode(self, frames):
        raise AssertionError("frames come as embeddings here")

    def step(self, layout, token_ids, frame_embeds, *, position, past):
        assert len(token_ids) == layout.text_index.size
        self.steps.append((layout, past))

    def logits(self, rows):
        self.num_rows_read.append(len(rows))
        return np.zeros((len(rows), self._vocab_size), np.float32)

    def evict(self, eviction):
        pass

    @property
    def kept(self):
        return {}


# ---- every input ----


@every_config
@every_lowering
def test_every_dim_of_every_input_has_a_range_and_static_dims_stay(config, lowering):
    kinds = set()
    for signature in bundle_signatures(config, lowering):
        kinds.add(signature.kind.name)
        for ranges in optimization_profiles(signature, config, LIMITS).values():
            assert list(ranges) == [spec.name for spec in signature.inputs]
            for spec in signature.inputs:
                allowed = ranges[spec.name]
                for dim, *sizes in zip(
                    spec.dims, allowed.min, allowed.opt, allowed.max, strict=True
                ):
                    assert isinstance(dim, str) or sizes == [dim] * 3
    assert kinds >= {"vision", "head", "mod" if config.mod_layers else "dense"}
    assert ("rebase" in kinds) == (lowering.target != "cpu")


@every_config
def test_layers_have_one_profile_per_kind_of_step_and_one_frame_is_the_default(config):
    for lowering in LOWERINGS:
        for signature in bundle_signatures(config, lowering):
            names = list(optimization_profiles(signature, config, LIMITS))
            if signature.kind.is_layer:
                assert names == ["one-frame", "many-frames", "text"]
            else:
                assert names == ["any"]


def test_limits_of_one_frame_have_no_profile_for_many():
    limits = StepLimits(100, 1, 1, CAPACITY)
    layer = signatures_of(CONFIGS["interleaved"], LOWERINGS[0])["mod"]
    profiles = optimization_profiles(layer, CONFIGS["interleaved"], limits)
    assert list(profiles) == ["one-frame", "text"]


@pytest.mark.parametrize(
    ("num_frames", "name"), [(0, "text"), (1, "one-frame"), (2, "many-frames"), (9, "many-frames")]
)
def test_the_profile_follows_from_the_number_of_frames(num_frames, name):
    assert profile_for(num_frames) == name


# ---- every step ----

pieces = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.integers(1, 130), st.booleans()),
        st.tuples(st.just("frames"), st.integers(1, 110), st.integers(1, 5)),
    ),
    min_size=1,
    max_size=12,
)


def steps_of(config, limits, script):
    """The steps of a script of texts and frames as [(layout, past)], and numbers of logits rows."""
    stream = RecordingStream(config)
    window = KvWindow(limits.capacity, evict_fraction=1 / 8)
    stepper = Stepper(stream, config, window, limits.max_step_tokens)
    try:
        stepper.feed_text([0] * 3, continues=False)
        window.close_sink()
        for kind, num_text, argument in script:
            if kind == "text":
                stepper.feed_text([0] * num_text, continues=argument)
            elif argument <= limits.max_frames:
                shape = (argument, config.frame_num_tokens, config.text_config.hidden_size)
                embeds = np.zeros(shape, np.float32)
                least = len(config.stream_config.interval_ids)  # of a prefix
                stepper.feed_frames([0] * (num_text - 1 + least), embeds, closes_sink=False)
    except CacheError:  # raised before such a step is fed
        pass
    return stream.steps, stream.num_rows_read


@given(
    name=st.sampled_from(sorted(CONFIGS)),
    script=pieces,
    max_step_tokens=st.integers(11, 120),
    max_frames=st.integers(1, 5),
    capacity=st.tuples(st.integers(60, 300), st.integers(20, 300)),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_step_of_a_session_lies_within_its_profile(
    name, script, max_step_tokens, max_frames, capacity
):
    config = CONFIGS[name]
    rows = Rows(capacity[0], min(capacity))
    max_frames = min(
        max_frames,
        min(max_step_tokens, rows.dense) // (config.frame_num_tokens + 1),
        rows.mod // (config.num_kept + 1),
    )
    limits = StepLimits(max_step_tokens, 1, max_frames, rows)
    steps, num_rows_read = steps_of(config, limits, script)
    for lowering in (Lowering("cpu", "fp32"), Lowering("rtx", "bf16", rows)):
        signatures = signatures_of(config, lowering)
        for layout, past in steps:
            sizes = sizes_of(layout)
            for kind in signatures.keys() & {"dense", "mod"}:
                sizes["S"] = max(1, past.mod if kind == "mod" else past.dense)
                ranges = optimization_profiles(signatures[kind], config, limits)
                for spec in signatures[kind].inputs:
                    shape = [dim if isinstance(dim, int) else sizes[dim] for dim in spec.dims]
                    assert is_within(shape, ranges[profile_for(layout.num_frames)][spec.name])
        head = optimization_profiles(signatures["head"], config, limits)["any"]["hidden"]
        for num_rows in num_rows_read:
            assert is_within((1, num_rows, config.text_config.hidden_size), head)


def test_the_longest_steps_reach_the_ends_of_their_ranges():
    """No engine is built for impossible steps: ranges that are too wide cost memory."""
    config = CONFIGS["interleaved"]
    signature = signatures_of(config, LOWERINGS[0])["mod"]
    script = [("text", 100, False)]
    script += [("frames", 101 - 11 * count, count) for count in (1, 2, 5)]  # prefixes to the limit
    steps, _ = steps_of(config, LIMITS, script)
    for name, ranges in optimization_profiles(signature, config, LIMITS).items():
        sizes = [sizes_of(layout) for layout, _ in steps if profile_for(layout.num_frames) == name]
        for spec in signature.inputs:
            for dim, most in zip(spec.dims, ranges[spec.name].max, strict=True):
                if dim in ("X", "F", "T", "R"):
                    assert max(size[dim] for size in sizes) == most, (name, spec.name)


def test_without_an_interval_a_step_of_frames_may_have_no_text():
    config = CONFIGS["one token, without interval"]
    profiles = optimization_profiles(signatures_of(config, LOWERINGS[0])["mod"], config, LIMITS)
    least = {name: ranges["text_index"].min for name, ranges in profiles.items()}
    assert least == {"one-frame": (0,), "many-frames": (0,), "text": (1,)}
    assert profiles["many-frames"]["row_order"].min == (2,)


@every_config
def test_no_step_is_longer_than_its_cache(config):
    """TensorRT-RTX 1.7 calls such a profile "not self-consistent"."""
    limits = StepLimits(512, 1, 2, Rows(72, 40))
    lowering = Lowering("rtx", "fp16", limits.capacity)
    for kind, signature in signatures_of(config, lowering).items():
        if kind not in ("dense", "mod"):
            continue
        for ranges in optimization_profiles(signature, config, limits).values():
            rows = ranges["row_order"].max[0] if kind == "mod" else ranges["hidden"].max[1]
            assert rows <= ranges["past_key"].max[2]


def test_rows_of_a_rebase_are_heads_times_sink_rows():
    for heads in (2, 3):
        config = odd_config(num_key_value_heads=heads)
        signature = signatures_of(config, Lowering("cuda", "fp32", CAPACITY))["rebase"]
        allowed = optimization_profiles(signature, config, LIMITS)["any"]["key"]
        assert (allowed.min, allowed.max) == ((heads, 16), (heads * 300, 16))  # E is 16
        assert allowed.opt == (heads * 128, 16)


def test_vision_takes_as_many_frames_as_a_step():
    config = CONFIGS["full"]
    signature = signatures_of(config, LOWERINGS[0])["vision"]
    frames = optimization_profiles(signature, config, LIMITS)["any"]["frames"]
    assert frames == ShapeRange((1, 59, 59, 3), (3, 59, 59, 3), (5, 59, 59, 3))


# ---- limits ----


@pytest.mark.parametrize("name", profile_names())
def test_every_graph_has_ranges_in_a_shipped_profile(name):
    profile = load_profile(name)
    limits = step_limits(profile, CAPACITY)
    frames = profile.frames_per_step
    assert limits == StepLimits(profile.max_step_tokens, frames.opt, frames.max, CAPACITY)
    for lowering in LOWERINGS:
        for signature in bundle_signatures(CONFIGS["interleaved"], lowering):
            assert optimization_profiles(signature, CONFIGS["interleaved"], limits)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((0, 1, 1, CAPACITY), "max_step_tokens=0, wanted at least 1"),
        ((9, 0, 1, CAPACITY), "opt_frames=0, max_frames=1: wanted 1 <= opt_frames <= max_frames"),
        ((9, 3, 2, CAPACITY), "opt_frames=3, max_frames=2: wanted 1 <= opt_frames <= max_frames"),
        ((9, 1, 1, Rows(0, 5)), "capacity.dense=0, wanted at least 1"),
        ((9, 1, 1, Rows(5, 0)), "capacity.mod=0, wanted at least 1"),
    ],
)
def test_impossible_limits_are_errors(values, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        StepLimits(*values)


@pytest.mark.parametrize(
    "limits",
    [
        StepLimits(54, 1, 5, CAPACITY),  # five frames of 10 tokens with their interval tokens: 55
        StepLimits(99, 1, 5, Rows(54, 54)),
        StepLimits(99, 1, 5, Rows(300, 14)),
    ],
)
def test_frames_that_do_not_fit_in_a_step_are_an_error_with_the_numbers(limits):
    config = CONFIGS["interleaved"]
    signature = signatures_of(config, LOWERINGS[0])["mod"]
    says = r"5 frames in a step take 55 tokens \(15 rows in MoD layers\); max_step_tokens is \d+"
    with pytest.raises(ConfigError, match=says):
        optimization_profiles(signature, config, limits)
    enough = StepLimits(55, 1, 5, Rows(55, 15))
    assert optimization_profiles(signature, config, enough)


def test_a_range_needs_equal_ranks_and_min_opt_max_in_order():
    with pytest.raises(ConfigError, match="differ in rank"):
        ShapeRange((1, 2), (1, 2), (1,))
    with pytest.raises(ConfigError, match="need min <= opt <= max"):
        ShapeRange((1, 2), (1, 3), (1, 2))
