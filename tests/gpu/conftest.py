"""Tests that need an NVIDIA GPU; without one each is skipped with the reason."""

from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from mod_edge.bundle.bundle import open_bundle
from mod_edge.errors import BackendError, ConfigError
from mod_edge.export.engines import build_engines
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.native.trt import load
from mod_edge.plan.targets import TARGETS
from mod_edge.profiles import FrameRange, load_profile, profile_names
from mod_edge.runtime.device.trt_model import load_trt_model
from mod_edge.runtime.loaded_model import StreamLimits
from tests.runtime.stand_in_model import FRAMES_PER_STEP, MAX_STEP_TOKENS, linked_copy

FOLDER = Path(__file__).parent
DELTA_WINDOW = "260"  # stream tokens, for graphs without a fixed window


@cache
def why_not() -> str:
    """Why there is no GPU to test on; "" if there is one."""
    try:
        CudaDriver().close()
    except BackendError as exc:
        return str(exc)
    return ""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.gpu)
            if why_not():
                item.add_marker(pytest.mark.skip(reason=why_not()))


@pytest.fixture
def driver():
    driver = CudaDriver()
    yield driver
    driver.close()


@pytest.fixture(scope="session")
def engines_for(bundle_for, tmp_path_factory):
    """`engines_for(target, precision)`: a tiny `Bundle` with engines for this GPU, and limits."""

    @cache
    def make(target, precision):
        compiler = TARGETS[target].compiler
        try:
            load(compiler)
        except BackendError as exc:
            pytest.skip(str(exc))
        profile = next(
            profile for profile in map(load_profile, profile_names()) if target in profile.targets
        )
        profile = replace(
            profile,
            max_step_tokens=MAX_STEP_TOKENS,
            frames_per_step=FrameRange(1, 2, FRAMES_PER_STEP),
            compute_capabilities=(),
            window=DELTA_WINDOW,
            max_new_tokens=12,
        )
        folder = tmp_path_factory.mktemp("gpu") / "bundle"
        bundle = open_bundle(linked_copy(bundle_for(target, precision), folder), hash_all=True)
        try:
            engines = build_engines(bundle, profile).settings
        except ConfigError as exc:
            if "does not compile for compute capability" not in str(exc):
                raise
            pytest.skip(str(exc))
        return bundle, StreamLimits(engines.limits.capacity, MAX_STEP_TOKENS, FRAMES_PER_STEP)

    return make


@pytest.fixture
def load_device_model(engines_for):
    """`load_device_model(target, precision)`: a `DeviceModel`, closed after the test."""
    with ExitStack() as release:

        def load(target, precision):
            return release.enter_context(load_trt_model(*engines_for(target, precision)))

        yield load


@pytest.fixture
def open_stream(load_device_model):
    """`open_stream(target, precision)`: a stream on its own model, and the model's config."""
    with ExitStack() as release:

        def make(target, precision):
            model = load_device_model(target, precision)
            return release.enter_context(model.open_stream()), model.config

        yield make
