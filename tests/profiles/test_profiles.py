"""Profiles: the shipped ones load, a user's own is checked, and every fault is named."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from mod_edge import profiles
from mod_edge.errors import ConfigError
from mod_edge.model.presets import preset_config
from mod_edge.plan.kv_budget import plan_window
from mod_edge.plan.targets import DTYPES, TARGETS, target_named
from mod_edge.profiles import Camera, FrameRange, Profile, load_profile, profile_names

OWN = """
targets = ["tensorrt-delta"]
precision = "fp16"
window = "4096"
frames_per_step = { min = 1, opt = 3, max = 5 }
max_step_tokens = 96
max_new_tokens = 20
"""
SHIPPED = [
    "cpu",
    "jetson-agx-orin",
    "jetson-orin-nano",
    "jetson-thor",
    "rtx-ada",
    "rtx-ampere",
    "rtx-blackwell",
]
config_of = cache(preset_config)  # a large preset takes 1 s to build its tokenizer


# ---- shipped ----


def test_there_is_a_profile_for_each_family_of_devices_and_for_every_target():
    assert profile_names() == SHIPPED
    assert {target for name in SHIPPED for target in load_profile(name).targets} == set(TARGETS)


@pytest.mark.parametrize(
    ("name", "targets", "precision", "capabilities"),
    [
        ("cpu", ("cpu",), "fp32", ()),
        ("rtx-ampere", ("rtx", "tensorrt", "cuda"), "bf16", ("86",)),
        ("rtx-ada", ("rtx", "tensorrt", "cuda"), "bf16", ("89",)),
        ("rtx-blackwell", ("rtx", "tensorrt", "cuda"), "bf16", ("120",)),
        ("jetson-orin-nano", ("tensorrt", "tensorrt-delta"), "fp16", ("87",)),
        ("jetson-agx-orin", ("tensorrt", "tensorrt-delta"), "fp16", ("87",)),
        ("jetson-thor", ("tensorrt", "tensorrt-delta"), "fp16", ("110",)),
    ],
)
def test_a_shipped_profile_names_what_such_a_device_has(name, targets, precision, capabilities):
    profile = load_profile(name)
    assert profile.name == name
    assert precision in target_named(targets[0]).precisions
    assert profile.camera == Camera(640, 480, 30)
    assert (profile.targets, profile.precision) == (targets, precision)
    assert profile.compute_capabilities == capabilities
    if name.startswith("jetson"):  # whichever TensorRT is installed, no --precision is needed
        assert all(precision in target_named(target).precisions for target in targets)


@pytest.mark.parametrize(
    ("name", "preset", "says"),
    [
        ("rtx-ampere", "1b", "161 MiB for the 1b"),
        ("rtx-ada", "8b", "643 MiB"),
        ("rtx-blackwell", "8b", "643 MiB"),
        ("jetson-orin-nano", "1b", "64 MiB for the 1b"),
        ("jetson-agx-orin", "8b", "643 MiB for the 8b"),
        ("jetson-thor", "8b", "1.3 GiB for the 8b"),
    ],
)
def test_the_memory_in_a_profiles_comments_is_what_its_window_takes(name, preset, says):
    profile = load_profile(name)
    assert says in (Path(profiles.__file__).parent / f"{name}.toml").read_text()
    dtype = DTYPES[profile.precision]
    size_bytes = plan_window(config_of(preset), profile.window, 250, dtype=dtype).size_bytes
    number, unit = says.split()[:2]
    size = size_bytes / {"MiB": 2**20, "GiB": 2**30}[unit]
    assert f"{size:.{len(number.partition('.')[2])}f}" == number


# ---- a user's own ----


def test_a_path_loads_a_profile_of_the_users_own(tmp_path):
    path = tmp_path / "kiosk.toml"
    path.write_text(OWN)
    frames = FrameRange(1, 3, 5)
    assert load_profile(path) == Profile(
        "kiosk", ("tensorrt-delta",), "fp16", "4096", frames, 96, 20
    )
    assert load_profile(str(path)) == load_profile(path)


def test_a_profile_may_set_some_camera_fields(tmp_path):
    path = tmp_path / "kiosk.toml"
    path.write_text(OWN + "[camera]\nwidth = 1280\nheight = 720\n")
    assert load_profile(path).camera == Camera(1280, 720, 30)


def test_unknown_profile_lists_the_known_ones_with_the_nearest_hint():
    with pytest.raises(ConfigError, match=r"'cpuu' \(did you mean 'cpu'\?\), known are cpu, "):
        load_profile("cpuu")
    with pytest.raises(ConfigError, match=r"known are cpu") as caught:
        load_profile("zzz")
    assert "did you mean" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the profile .*nowhere\.toml"):
        load_profile(tmp_path / "nowhere.toml")


def test_all_faults_of_a_file_are_in_one_message(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(OWN.replace('window = "4096"', 'windw = 3\nname = "other"\ncamera = 3'))
    with pytest.raises(ConfigError) as caught:
        load_profile(path)
    assert str(caught.value).split("; ") == [
        f"{path}: unknown field 'windw' (did you mean 'window'?)",
        "unknown field 'name': it cannot be set here, it is always 'wrong'",
        "missing field 'window'",
        "camera=3, wanted a table, write camera = { width = ..., height = ..., fps = ..., "
        "pixel_format = ... }",
    ]


def test_a_value_out_of_range_is_named_with_the_files_path(tmp_path):
    path = tmp_path / "kiosk.toml"
    path.write_text(OWN.replace("96", "0"))
    with pytest.raises(ConfigError, match=r"kiosk\.toml: .*max_step_tokens = 0: wanted at least 1"):
        load_profile(path)


def test_broken_toml_is_a_config_error_with_the_line(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("window = \n")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML: .*line 1"):
        load_profile(path)


@pytest.mark.parametrize(
    ("value", "fault"),
    [("[" * 100_000, "nested in more than 64 levels"), ("9" * 400, "of more than 300 digits")],
    ids=["brackets", "digits"],
)
def test_toml_beyond_reason_is_a_config_error(tmp_path, value, fault):
    path = tmp_path / "broken.toml"
    path.write_text(f"window = {value}\n")
    with pytest.raises(ConfigError, match=rf"broken\.toml is not valid TOML: .*{fault}"):
        load_profile(path)


# ---- values ----


@pytest.mark.parametrize("window", ["1", "4096", "120s", "0.5s"])
def test_a_window_is_whole_tokens_or_seconds(window):
    assert replace(load_profile("cpu"), window=window).window == window


@pytest.mark.parametrize("window", ["", "0", "0s", "0.0s", "-5s", "1.5", "2min", "s", " 9s", "9ss"])
def test_any_other_window_is_rejected(window):
    with pytest.raises(ConfigError, match='wanted seconds as "120s" or tokens as "4096"'):
        replace(load_profile("cpu"), window=window)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("max_step_tokens", -1, "max_step_tokens = -1: wanted at least 1"),
        ("max_new_tokens", 0, "max_new_tokens = 0: wanted at least 1"),
        ("workspace_mib", 0, "workspace_mib = 0: wanted at least 1"),
        ("camera", Camera(0, 480, 30), "camera.width = 0: wanted at least 1"),
        ("camera", Camera(640, -1, 30), "camera.height = -1: wanted at least 1"),
        ("camera", Camera(fps=float("nan")), "camera.fps = nan: wanted at least 1"),
        ("camera", Camera(pixel_format="mjpeg"), 'camera.pixel_format = "mjpeg": wanted V4L2\'s'),
        ("evict_fraction", 0.0, "evict_fraction = 0.0: wanted between 0 and 1"),
        ("evict_fraction", 1.0, "evict_fraction = 1.0: wanted between 0 and 1"),
        ("builder_optimization_level", 6, "builder_optimization_level = 6: wanted 0 to 5"),
        ("builder_optimization_level", -1, "builder_optimization_level = -1: wanted 0 to 5"),
        ("frames_per_step", FrameRange(0, 1, 1), "0, 1, 1: wanted min = 1 <= opt <= max"),
        ("frames_per_step", FrameRange(2, 2, 2), "2, 2, 2: wanted min = 1 <= opt <= max"),
        ("frames_per_step", FrameRange(1, 3, 2), "1, 3, 2: wanted min = 1 <= opt <= max"),
        ("targets", (), "targets is empty: wanted one or more of cpu, cuda"),
        ("targets", ("cpu", "cdua"), "targets: unknown 'cdua' (did you mean 'cuda'?), known"),
        ("precision", "fp8", 'precision = "fp8": wanted one of fp32, fp16, bf16'),
        ("precision", "bf16", 'precision = "bf16": none of its targets supports it'),
        ("compute_capabilities", ("8.6",), '"8.6": wanted digits, "89" for 8.9'),
    ],
)
def test_values_out_of_range_are_rejected_by_name(key, value, says):
    with pytest.raises(ConfigError) as caught:
        replace(load_profile("cpu"), **{key: value})
    assert str(caught.value).startswith('profile "cpu": ')
    assert says in str(caught.value)
