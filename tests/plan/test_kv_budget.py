"""Windows in seconds, tokens and MiB, compared with a plain count of rows."""

import math
from dataclasses import replace
from functools import partial

import pytest

from mod_edge.config import MoDConfig
from mod_edge.errors import ConfigError
from mod_edge.plan import kv_budget
from mod_edge.plan.kv_budget import (
    most_frames_per_step,
    plan_capacity,
    rows_of,
    rows_of_frames,
)
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.targets import CPU_FP32
from mod_edge.runtime.cpu.kv_cache import KvCache
from tests.conftest import odd_config
from tests.frame_layouts import one_token, without_interval

TEXT_MINIMUM = 60
plan_window = partial(kv_budget.plan_window, dtype="float32")
plan_budget = partial(kv_budget.plan_budget, dtype="float32")


def rows_for(config, num_frames, text_minimum=TEXT_MINIMUM):
    """Frames with their interval tokens, plus text: the minimum or an eighth of all tokens."""
    has_interval = config.stream_config.frame_token_interval != ""
    tokens = num_frames * (config.frame_num_tokens + has_interval)
    text = max(text_minimum, math.ceil(tokens / 7))
    num_skipped = num_frames * (config.frame_num_tokens - config.num_kept)
    return Rows(tokens + text, tokens + text - num_skipped)


def bytes_for(config, num_frames, text_minimum=TEXT_MINIMUM):
    rows, text = rows_for(config, num_frames, text_minimum), config.text_config
    num_rows = sum(
        rows.mod if index in config.mod_layers else rows.dense
        for index in range(text.num_hidden_layers)
    )
    return num_rows * 2 * text.num_key_value_heads * text.head_dim * 4


def frames_of(config, plan):
    return round(plan.num_seconds * config.stream_config.frame_fps)


CONFIGS = {
    "full": odd_config(mod=None),
    "r=0.2": odd_config(),
    "all": odd_config(mod=MoDConfig("all", 0.5)),
    "early exit": odd_config(mod=MoDConfig("early_exit")),
    "no interval": without_interval(odd_config()),
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def test_rows_of_text_and_frames_in_each_geometry(make_config):
    assert rows_of(make_config(), 7, 3) == Rows(7 + 30, 7 + 6)
    assert rows_of(make_config(mod=None), 7, 3) == Rows(37, 37)
    assert rows_of(make_config(mod=MoDConfig("layer_skip")), 7, 3) == Rows(37, 7)


def test_a_step_of_frames_has_the_interval_between_them_and_text_before(make_config):
    config = make_config()
    assert rows_of_frames(config, 3, num_before=4) == Rows(4 + 2 + 30, 4 + 2 + 6)
    assert rows_of_frames(without_interval(config), 3, num_before=0) == Rows(30, 6)


def test_a_window_of_one_token_frames_needs_no_rows_between_them(make_config):
    plan = plan_window(one_token(make_config()), "300s", TEXT_MINIMUM)
    assert plan.capacity == Rows(600 + 86, 600 + 86)  # an eighth is text
    assert plan.num_seconds == plan.num_seconds_full == 300


@pytest.mark.parametrize(
    ("max_step_tokens", "wanted", "without"), [(54, 4, 5), (51, 4, 5), (50, 4, 4), (10, 0, 0)]
)
def test_a_step_of_frames_leaves_room_for_one_token_of_text(
    make_config, max_step_tokens, wanted, without
):
    config = make_config()
    assert most_frames_per_step(config, max_step_tokens) == wanted
    assert most_frames_per_step(without_interval(config), max_step_tokens) == without


@pytest.mark.parametrize("budget_mib", [0.5, 1, 1.7, 12])
def test_a_budget_is_met_and_the_next_frame_would_exceed_it(config, budget_mib):
    plan = plan_budget(config, budget_mib, TEXT_MINIMUM)
    num_frames = frames_of(config, plan)
    assert plan.capacity == rows_for(config, num_frames)
    assert plan.size_bytes <= budget_mib * 2**20 < bytes_for(config, num_frames + 1)


@pytest.mark.parametrize("window", ["30s", "1000"])
def test_the_size_in_bytes_equals_the_real_buffers(config, window):
    plan = plan_window(config, window, TEXT_MINIMUM)
    assert plan.size_bytes == KvCache(config, CPU_FP32, plan.capacity).size_bytes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_halves_the_cache_or_doubles_the_video(config, dtype):
    whole = plan_window(config, "30s", TEXT_MINIMUM)
    half = plan_window(config, "30s", TEXT_MINIMUM, dtype=dtype)
    assert half == replace(whole, size_bytes=whole.size_bytes // 2)
    whole = plan_budget(config, 2, TEXT_MINIMUM)
    half = plan_budget(config, 1, TEXT_MINIMUM, dtype=dtype)
    assert half == replace(whole, size_bytes=whole.size_bytes // 2)


@pytest.mark.parametrize("window", ["0.5s", "30s", "300s", "211", "400", "4096"])
@pytest.mark.parametrize("text_minimum", [60, 200])
def test_planning_with_a_windows_rows_returns_its_plan(config, window, text_minimum):
    plan = kv_budget.plan_window(config, window, text_minimum, dtype="float16")
    assert plan_capacity(config, plan.capacity, text_minimum, dtype="float16") == plan


def test_fixed_rows_hold_less_video_with_a_longer_reply(config):
    capacity = plan_window(config, "30s", TEXT_MINIMUM).capacity
    longer = plan_capacity(config, capacity, 150, dtype="float32")
    assert longer.capacity == capacity
    num_frames = frames_of(config, longer)
    assert rows_for(config, num_frames, 150).fits(capacity)
    assert not rows_for(config, num_frames + 1, 150).fits(capacity)
    assert 0 < num_frames < 60


def test_too_few_rows_in_either_geometry_are_an_error_with_the_rows_needed(make_config):
    config, least = make_config(), rows_for(make_config(), 1)
    assert plan_capacity(config, least, TEXT_MINIMUM, dtype="float32").num_seconds == 0.5
    for capacity in (least.minus(Rows(1, 0)), least.minus(Rows(0, 1))):
        with pytest.raises(
            ConfigError, match=r"longest reply take 71 \(63\); export with a larger"
        ):
            plan_capacity(config, capacity, TEXT_MINIMUM, dtype="float32")


@pytest.mark.parametrize(
    ("window", "frame_fps", "num_frames"),
    [
        ("120s", 2.0, 240),
        ("120s", 29.97, 3597),
        ("0.9s", 2.0, 2),
        ("0.1s", 2.0, 1),
        (" 5s ", 2, 10),
    ],
)
def test_a_window_in_seconds_holds_that_much_video_plus_text(
    make_config, window, frame_fps, num_frames
):
    config = make_config()
    config = replace(config, stream_config=replace(config.stream_config, frame_fps=frame_fps))
    plan = plan_window(config, window, TEXT_MINIMUM)
    assert plan.capacity == rows_for(config, num_frames)
    assert plan.num_seconds == num_frames / frame_fps


@pytest.mark.parametrize("num_tokens", [71, 72, 400, 4096])
def test_a_window_in_tokens_has_exactly_that_many_dense_rows(config, num_tokens):
    plan = plan_window(config, str(num_tokens), TEXT_MINIMUM)
    num_frames = frames_of(config, plan)
    assert rows_for(config, num_frames).dense <= num_tokens < rows_for(config, num_frames + 1).dense
    num_skipped = num_frames * (config.frame_num_tokens - config.num_kept)
    assert plan.capacity == Rows(num_tokens, num_tokens - num_skipped)


def test_an_eighth_of_a_long_window_is_text(make_config):
    dense = rows_for(make_config(), 7000).dense
    assert plan_window(make_config(), "3500s", TEXT_MINIMUM).capacity.dense == dense == 88_000
    assert 7000 * 11 / dense == 7 / 8


def test_the_full_computation_model_holds_the_same_video_as_itself(make_config):
    for plan in (
        plan_window(make_config(mod=None), "33s", TEXT_MINIMUM),
        plan_window(make_config(mod=None), "777", TEXT_MINIMUM),
        plan_budget(make_config(mod=None), 1.5, TEXT_MINIMUM),
    ):
        assert plan.num_seconds == plan.num_seconds_full


@pytest.mark.parametrize("insertion", ["interleaved", "all"])
def test_num_seconds_full_is_the_most_video_of_full_computation_in_the_same_bytes(
    make_config, insertion
):
    plan = plan_budget(make_config(mod=MoDConfig(insertion)), 2, TEXT_MINIMUM)
    full = make_config(mod=None)
    num_frames = round(plan.num_seconds_full * 2)
    assert bytes_for(full, num_frames) <= plan.size_bytes < bytes_for(full, num_frames + 1)
    assert plan.num_seconds > plan.num_seconds_full


def test_rows_not_filled_by_frames_are_not_counted_as_video_of_either_model(make_config):
    config, full = make_config(mod=MoDConfig("all")), make_config(mod=None)
    for num_tokens in range(71, 400, 7):
        plan = plan_window(config, str(num_tokens), TEXT_MINIMUM)
        spare = num_tokens - rows_for(config, frames_of(config, plan)).dense
        most_bytes = plan.size_bytes - spare * bytes_for(full, 0, 1)
        num_frames = round(plan.num_seconds_full * 2)
        assert bytes_for(full, num_frames) <= most_bytes < bytes_for(full, num_frames + 1)


def test_a_larger_sink_or_reply_leaves_less_video(make_config):
    seconds = [plan_budget(make_config(), 1, text).num_seconds for text in (60, 200, 500)]
    assert seconds == sorted(set(seconds), reverse=True)


@pytest.mark.parametrize("window", ["", "abc", "-5s", "1.5", "2min", "s", "12 s", "1e3"])
def test_a_window_that_is_not_a_number_is_an_error(make_config, window):
    with pytest.raises(ConfigError, match="wanted seconds like 120s or tokens like 4096"):
        plan_window(make_config(), window, TEXT_MINIMUM)


@pytest.mark.parametrize("window", ["0", "70"])
def test_a_window_of_too_few_tokens_is_an_error_with_the_tokens_needed(make_config, window):
    with pytest.raises(ConfigError, match=rf"window={window} is too small.*take 71 tokens"):
        plan_window(make_config(), window, TEXT_MINIMUM)
    assert plan_window(make_config(), "71", TEXT_MINIMUM).num_seconds == 0.5


def test_a_window_of_zero_seconds_is_an_error(make_config):
    with pytest.raises(ConfigError, match="window='0s'"):
        plan_window(make_config(), "0s", TEXT_MINIMUM)


@pytest.mark.parametrize("budget_mib", [0.01, 0, -1])
def test_a_budget_below_one_frame_is_an_error_with_the_budget_needed(make_config, budget_mib):
    with pytest.raises(ConfigError, match=r"kv-budget=.* is too small: .*take 0\.1 MiB"):
        plan_budget(make_config(), budget_mib, TEXT_MINIMUM)


@pytest.mark.parametrize("budget_mib", [float("inf"), float("-inf"), float("nan")])
def test_a_budget_that_is_not_finite_is_an_error(make_config, budget_mib):
    with pytest.raises(ConfigError, match=r"kv-budget=\S+ MiB, wanted a finite number"):
        plan_budget(make_config(), budget_mib, TEXT_MINIMUM)


def test_the_budget_named_in_the_message_is_enough(make_config):
    config = make_config(num_layers=32)
    with pytest.raises(ConfigError) as caught:
        plan_budget(config, 0.01, TEXT_MINIMUM)
    enough = float(str(caught.value).split(" take ")[1].split()[0])
    assert plan_budget(config, enough, TEXT_MINIMUM).num_seconds >= 0.5
