"""Tests that need an NVIDIA GPU: each skips with the reason where there is none."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from mod_edge.bundle.manifest import CONFIG_FILE, read_manifest
from mod_edge.config import read_config
from mod_edge.errors import BackendError
from mod_edge.export.engines import build_engines
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.native.trt import load
from mod_edge.plan.targets import TARGETS
from mod_edge.profiles import FrameRange, load_profile, profile_names
from mod_edge.runtime.device.trt_runner import open_trt_runner
from mod_edge.runtime.runner import SessionLimits
from tests.runtime.stand_in_runner import (
    DELTA_CAPACITY,
    FRAMES_PER_STEP,
    MAX_STEP_TOKENS,
    linked_copy,
)

FOLDER = Path(__file__).parent


@cache
def why_not() -> str:
    """Why there is no GPU to test on; "" where there is one."""
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
    """`engines_for(target, precision)`: the tiny bundle with engines for this GPU, and limits."""

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
        )
        folder = tmp_path_factory.mktemp("gpu") / "bundle"
        bundle = linked_copy(bundle_for(target, precision), folder)
        capacity = read_manifest(bundle).lowering.capacity
        build_engines(bundle, profile, capacity=None if capacity else DELTA_CAPACITY)
        return bundle, SessionLimits(capacity or DELTA_CAPACITY, MAX_STEP_TOKENS, FRAMES_PER_STEP)

    return make


@pytest.fixture
def open_runner(engines_for):
    """`open_runner(target, precision)`: a `DeviceRunner` on this GPU and its config."""
    opened = []

    def make(target, precision):
        bundle, limits = engines_for(target, precision)
        config = read_config(bundle / CONFIG_FILE)
        runner = open_trt_runner(bundle, read_manifest(bundle), config, limits)
        opened.append(runner)
        return runner, config

    yield make
    for runner in opened:
        runner.close()
