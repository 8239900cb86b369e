"""Opening a bundle: its profile, and a window that its graphs may already have."""

import re

import pytest

from mod_edge.bundle.engine_manifest import EngineManifest, EngineSettings, write_engine_manifest
from mod_edge.bundle.manifest import Manifest, write_manifest
from mod_edge.bundle.shape_ranges import step_limits
from mod_edge.errors import BundleError, ConfigError
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.targets import TARGETS, Lowering
from mod_edge.profiles import load_profile
from mod_edge.runtime.open_session import open_session, profile_of_bundle
from tests.conftest import CAPACITY


@pytest.fixture
def make_bundle(tmp_path):
    """`make_bundle(target, *profiles)`: its manifest, and those of engines for these profiles."""

    def make(target, *profiles):
        capacity = Rows(300, 180) if TARGETS[target].dialect == "in_place" else None
        lowering = Lowering(target, TARGETS[target].precisions[0], capacity)
        write_manifest(Manifest({}, lowering, [], {}, {}, {}), tmp_path)
        for name in profiles:
            limits = step_limits(load_profile("cpu"), Rows(300, 180))
            settings = EngineSettings(
                target, "tensorrt_rtx", "1.7", "89", lowering.precision, name, limits, 64, 3
            )
            (tmp_path / settings.folder).mkdir(parents=True)
            write_engine_manifest(EngineManifest(settings, {}), tmp_path)
        return tmp_path

    return make


# ---- profile ----


def test_a_profile_that_is_named_is_taken(make_bundle):
    bundle = make_bundle("rtx", "rtx-ada")
    assert profile_of_bundle(bundle, "rtx-blackwell") == load_profile("rtx-blackwell")


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("cpu", "cpu"),
        ("cuda", "rtx-ada"),
        ("rtx", "rtx-ada"),
        ("tensorrt-delta", "jetson-agx-orin"),
    ],
)
def test_a_bundle_without_engines_takes_the_first_profile_for_its_target(make_bundle, target, name):
    assert profile_of_bundle(make_bundle(target), None) == load_profile(name)


def test_engines_say_which_profile_they_were_built_with(make_bundle):
    bundle = make_bundle("tensorrt-delta", "jetson-orin-nano")
    assert profile_of_bundle(bundle, None) == load_profile("jetson-orin-nano")


def test_profiles_that_differ_only_in_the_gpu_are_one_to_a_run(make_bundle):
    bundle = make_bundle("rtx", "rtx-blackwell", "rtx-ampere", "rtx-ada")
    assert profile_of_bundle(bundle, None) == load_profile("rtx-ada")


def test_engines_of_several_profiles_want_one_named(make_bundle):
    bundle = make_bundle("tensorrt-delta", "jetson-orin-nano", "jetson-agx-orin")
    says = "engines of the profiles jetson-agx-orin, jetson-orin-nano; name one with --profile"
    with pytest.raises(ConfigError, match=says):
        profile_of_bundle(bundle, None)


def test_engines_of_a_profile_of_the_users_own_want_its_file(make_bundle):
    bundle = make_bundle("rtx", "kiosk", "rtx-ada")
    with pytest.raises(ConfigError, match=re.escape("give its file with --profile path/to/kiosk")):
        profile_of_bundle(bundle, None)


def test_no_bundle_has_no_profile(tmp_path):
    with pytest.raises(BundleError, match="is no bundle"):
        profile_of_bundle(tmp_path, None)


# ---- window ----


def test_graphs_with_a_window_in_them_are_run_with_that_one(bundle_for):
    bundle = bundle_for("cuda", "fp32")
    with open_session(bundle, backend="onnx", max_new_tokens=40) as session:
        plan = session.plan
    assert plan.capacity == CAPACITY
    assert (plan.num_seconds, plan.num_seconds_full) == (2.0, 0.0)
    heads_and_dims = 2 * 16
    assert plan.size_bytes == 2 * 3 * sum(CAPACITY) * heads_and_dims * 4  # 3 layers of each kind


def test_such_a_window_may_be_too_small_for_the_profiles_replies(bundle_for):
    says = r"148 in MoD layers\): .* take 205 \(197\); export with a larger --window, or run"
    with pytest.raises(ConfigError, match=says):
        open_session(bundle_for("cuda", "fp32"), backend="onnx")


@pytest.mark.parametrize("asked", [{"window": "60s"}, {"kv_budget_mib": 3.0}])
def test_another_window_for_such_graphs_is_refused(bundle_for, asked):
    says = "made for a window of 260 tokens; run without --window and --kv-budget, or export again"
    with pytest.raises(ConfigError, match=says):
        open_session(bundle_for("cuda", "fp32"), backend="onnx", **asked)


def test_a_profile_may_be_given_itself_by_name_or_by_path(tiny_bundle, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        'targets = ["cpu"]\nprecision = "fp32"\nwindow = "20s"\nmax_step_tokens = 64\n'
        "frames_per_step = { min = 1, opt = 2, max = 2 }\nmax_new_tokens = 7\n"
    )
    for profile in (path, str(path), load_profile(path)):
        with open_session(tiny_bundle, profile=profile) as session:
            assert session.plan.num_seconds == 20
            assert session.options.frames_per_step == 2
            assert session.options.max_new_tokens == 7
    with open_session(tiny_bundle) as session:
        assert session.plan.num_seconds == 120
