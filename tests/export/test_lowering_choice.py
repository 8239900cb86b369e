"""The choice of a lowering: flags override the profile, which overrides what is installed."""

import re
from dataclasses import replace

import pytest

from mod_edge.errors import BackendError, ConfigError
from mod_edge.export import lowering_choice
from mod_edge.export.lowering_choice import (
    LARGE_DECODER,
    choose_lowering,
    choose_target,
    default_weights,
    require_compiler,
    summary,
    weights_reason,
)
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import preset_config
from mod_edge.plan.kv_budget import plan_capacity, plan_window
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.protocol import QUERY_ALLOWANCE, Protocol, text_minimum
from mod_edge.plan.targets import CPU_FP32, TARGETS, Lowering
from mod_edge.profiles import FrameRange, load_profile, profile_names

RTX, NANO = load_profile("rtx-ada"), load_profile("jetson-orin-nano")


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint):
    return Checkpoint(tiny_checkpoint)


@pytest.fixture
def installed(monkeypatch):
    """`installed("rtx", ...)`: these targets are installed here, and no others."""

    def install(*names):
        found = {name: f"{name} 1.0" for name in TARGETS if name in names}
        monkeypatch.setattr(lowering_choice, "installed_targets", lambda: found)

    return install


# ---- target ----


@pytest.mark.parametrize(
    ("profile", "found", "target"),
    [
        (RTX, ["cpu", "rtx"], "rtx"),
        (RTX, ["cpu", "rtx", "tensorrt"], "rtx"),
        (RTX, ["cpu", "cuda", "tensorrt"], "tensorrt"),
        (RTX, ["cpu", "cuda"], "cuda"),
        (NANO, ["cpu", "tensorrt-delta"], "tensorrt-delta"),
        (NANO, ["rtx", "tensorrt"], "tensorrt"),
    ],
)
def test_the_best_installed_target_of_the_profile_is_chosen(installed, profile, found, target):
    installed(*found)
    assert choose_target(profile) == target


def test_a_flag_wins_over_what_is_installed(installed):
    installed("cpu", "rtx")
    assert choose_target(RTX, "cuda") == "cuda"
    assert choose_target(NANO, "tensorrt-delta") == "tensorrt-delta"


def test_a_profile_with_one_target_needs_nothing_installed(installed):
    installed()
    assert choose_target(load_profile("cpu")) == "cpu"


@pytest.mark.parametrize(
    ("found", "here"), [([], "(nothing)"), (["cpu", "rtx"], "(cpu 1.0 for cpu, rtx 1.0 for rtx)")]
)
def test_without_an_installed_target_the_error_names_targets_packages_and_the_flag(
    installed, found, here
):
    installed(*found)
    says = (
        "profile 'jetson-orin-nano' is for devices with tensorrt, tensorrt-delta, and none of them "
        f"is installed here {here}; name the device's target with --target"
    )
    with pytest.raises(ConfigError, match=re.escape(says)):
        choose_target(NANO)


def test_a_target_that_the_profile_does_not_list_is_refused_with_those_it_does():
    says = "for devices with tensorrt, tensorrt-delta, not for target 'rtx'"
    with pytest.raises(ConfigError, match=says):
        choose_target(NANO, "rtx")
    with pytest.raises(ConfigError, match=r"unknown target 'rtxx' \(did you mean 'rtx'\?\)"):
        choose_target(RTX, "rtxx")


# ---- lowering ----


def test_the_default_profile_is_the_plain_cpu_bundle(checkpoint, installed):
    installed()
    assert choose_lowering(checkpoint, load_profile("cpu")) == CPU_FP32


def test_fixed_rows_are_the_rows_that_run_would_plan(checkpoint, installed):
    installed("rtx")
    config = checkpoint.config
    stream = config.stream_config
    opening = Protocol(stream, checkpoint.tokenizer, threshold=0.5).opening_ids()
    least_text = text_minimum(stream, checkpoint.tokenizer, max_new_tokens=100)
    assert least_text == len(opening) + QUERY_ALLOWANCE + 100
    for window in (None, "60s", "1000"):
        lowering = choose_lowering(checkpoint, RTX, window=window)
        plan = plan_window(config, window or "300s", least_text, dtype="bfloat16")
        assert lowering == Lowering("rtx", "bf16", plan.capacity)
        assert plan_capacity(config, lowering.capacity, least_text, dtype="bfloat16") == plan


def test_delta_graphs_have_no_fixed_rows_and_take_no_window(checkpoint):
    lowering = choose_lowering(checkpoint, NANO, target="tensorrt-delta")
    assert lowering == Lowering("tensorrt-delta", "fp16", None)
    for profile, target in ((NANO, "tensorrt-delta"), (load_profile("cpu"), "cpu")):
        with pytest.raises(ConfigError, match=f"target {target} has no fixed window; omit"):
            choose_lowering(checkpoint, profile, target=target, window="60s")


def test_a_precision_that_the_target_does_not_take_is_refused(checkpoint):
    assert choose_lowering(checkpoint, RTX, target="rtx", precision="fp16").precision == "fp16"
    for target, precision in (("cuda", None), ("rtx", "fp8")):
        with pytest.raises(ConfigError, match=f"target {target} supports fp32, fp16"):
            choose_lowering(checkpoint, RTX, target=target, precision=precision)


def test_a_window_that_is_too_small_for_the_engines_of_the_profile_is_refused(checkpoint):
    with pytest.raises(ConfigError, match="window=100 is too small"):
        choose_lowering(checkpoint, RTX, target="rtx", window="100")
    frames = replace(RTX, frames_per_step=FrameRange(1, 1, 40))
    with pytest.raises(ConfigError, match="40 frames in a step take 440 tokens"):
        choose_lowering(checkpoint, frames, target="rtx", window="300")
    # Also for engines of delta graphs; for targets without engines the session checks it.
    with pytest.raises(ConfigError, match="40 frames in a step take 440 tokens"):
        choose_lowering(
            checkpoint,
            replace(NANO, frames_per_step=FrameRange(1, 1, 40)),
            target="tensorrt-delta",
        )
    assert choose_lowering(checkpoint, frames, target="cuda", precision="fp16", window="300")


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_has_a_lowering_for_each_of_its_targets(checkpoint, name):
    profile = load_profile(name)
    for target in profile.targets:
        precision = "fp16" if target == "cuda" else None  # cuda does not take the profiles' bf16
        lowering = choose_lowering(checkpoint, profile, target=target, precision=precision)
        assert (lowering.target, lowering.precision) == (target, precision or profile.precision)


# ---- weights ----


@pytest.mark.parametrize(("preset", "weights"), [("tiny", "as-dtype"), ("1b", "int8")])
def test_a_large_decoder_is_int8_by_default_on_a_cpu_alone(preset, weights):
    config = preset_config(preset)
    assert default_weights(config, "cpu") == weights
    others = TARGETS.keys() - {"cpu"}
    assert {default_weights(config, target) for target in others} == {"as-dtype"}


def test_weights_are_large_from_100_million_decoder_weights_on(monkeypatch):
    config = preset_config("tiny")
    for count, weights in ((LARGE_DECODER, "int8"), (LARGE_DECODER - 1, "as-dtype")):
        counts = {"decoder": count, "total": 0, "embedding": 2 * LARGE_DECODER}
        monkeypatch.setattr(lowering_choice, "num_parameters", lambda _config, it=counts: it)
        assert default_weights(config, "cpu") == weights


def test_weights_that_are_asked_for_win_over_the_default(checkpoint):
    profile = load_profile("cpu")
    lowering = choose_lowering(checkpoint, profile, weights="int4")
    assert lowering == Lowering("cpu", "fp32", weight_format="int4")
    with pytest.raises(ConfigError, match=r"unknown weights 'int44' \(did you mean 'int4'\?\)"):
        choose_lowering(checkpoint, profile, weights="int44")


@pytest.mark.parametrize(
    ("lowering", "asked", "reason"),
    [
        (
            Lowering("cpu", "fp32", weight_format="int8"),
            None,
            "weights int8: the default for target cpu from 100 million decoder weights on; "
            "--weights as-dtype keeps fp32",
        ),
        (
            CPU_FP32,
            None,
            "weights as-dtype (fp32): the default for target cpu below 100 million decoder "
            "weights; --weights int8 or int4 makes them smaller",
        ),
        (
            Lowering("rtx", "bf16", Rows(260, 148)),
            None,
            "weights as-dtype (bf16): the default for target rtx; "
            "--weights int8-weight-only or int4 makes them smaller",
        ),
        (CPU_FP32, "as-dtype", "weights as-dtype: chosen with --weights"),
    ],
)
def test_the_reason_for_the_weights_says_how_to_get_others(lowering, asked, reason):
    assert weights_reason(lowering, asked) == reason


# ---- building at once ----


def test_engines_need_a_target_that_has_some_and_its_compiler(monkeypatch):
    with pytest.raises(ConfigError, match="target cpu has no engines: ONNX Runtime runs"):
        require_compiler(CPU_FP32)
    lowering = Lowering("tensorrt-delta", "fp16")
    monkeypatch.setattr(lowering_choice, "is_missing", lambda _name: True)
    says = "compiled with tensorrt, which is not installed here; export without --build"
    with pytest.raises(BackendError, match=says):
        require_compiler(lowering)
    monkeypatch.setattr(lowering_choice, "is_missing", lambda _name: False)
    require_compiler(lowering)


def test_the_summary_names_the_target_and_whether_it_is_installed(installed):
    installed("cpu")
    assert summary(CPU_FP32) == "target cpu (cpu 1.0 here), precision fp32"
    assert summary(Lowering("rtx", "bf16", Rows(260, 148))) == (
        "target rtx (not installed here), precision bf16, "
        "window 260 tokens (148 rows in MoD layers)"
    )
