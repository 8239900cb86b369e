"""A TensorRT runner on the stand-ins, with everything that a test wants to look at."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from mod_edge.bundle.manifest import CONFIG_FILE, Manifest, read_manifest
from mod_edge.bundle.shape_ranges import StepLimits
from mod_edge.config import ModelConfig, read_config
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.native.trt import TensorRT
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.layout import step_layout
from mod_edge.runtime.device.device_runner import DeviceRunner
from mod_edge.runtime.device.trt_runner import open_trt_runner
from mod_edge.runtime.runner import SessionLimits
from tests.native.stand_in_driver import StandInCudart
from tests.native.stand_in_tensorrt import build_stand_ins, stand_in_tensorrt

DELTA_CAPACITY = Rows(dense=260, mod=132)
MAX_STEP_TOKENS, FRAMES_PER_STEP = 64, 3


@dataclass
class StandIn:
    """A machine with a stand-in GPU and a bundle with engines for it."""

    bundle: Path
    manifest: Manifest
    config: ModelConfig
    limits: SessionLimits
    cudart: StandInCudart
    tensorrt: TensorRT
    opened: list[DeviceRunner] = field(default_factory=list)

    def open(self) -> DeviceRunner:
        """A new runner on this GPU; `close` closes all of them."""
        runner = open_trt_runner(
            self.bundle,
            self.manifest,
            self.config,
            self.limits,
            driver=CudaDriver(self.cudart),
            tensorrt=self.tensorrt,
        )
        self.opened.append(runner)
        return runner

    def build(self, **changes):
        """Engines for it, see `build_stand_ins`."""
        limits = StepLimits(MAX_STEP_TOKENS, 2, FRAMES_PER_STEP, self.limits.capacity)
        return build_stand_ins(
            self.bundle,
            self.manifest,
            self.config,
            changes.pop("limits", limits),
            self.tensorrt,
            **changes,
        )

    def close(self) -> None:
        """Close what is open."""
        for runner in self.opened:
            runner.close()


def stand_in_for(bundle: Path, **memory) -> StandIn:
    """A machine for the bundle's target, without engines yet."""
    manifest, config = read_manifest(bundle), read_config(bundle / CONFIG_FILE)
    capacity = manifest.lowering.capacity or DELTA_CAPACITY
    limits = SessionLimits(capacity, MAX_STEP_TOKENS, FRAMES_PER_STEP)
    cudart = StandInCudart(**memory)
    compilers = {"rtx": ("tensorrt_rtx", "1.7.1.116"), "tensorrt-delta": ("tensorrt", "10.3.0")}
    tensorrt = stand_in_tensorrt(cudart, *compilers[manifest.lowering.target])
    return StandIn(bundle, manifest, config, limits, cudart, tensorrt)


def linked_copy(bundle: Path, folder: Path) -> Path:
    """A copy of the bundle without engines; its files are the same ones, so write none anew."""
    ignore = shutil.ignore_patterns("engines")
    return shutil.copytree(bundle, folder, ignore=ignore, copy_function=os.link)


class Feeder:
    """Feeds steps one after another and counts the rows."""

    def __init__(self, runner, config):
        self.runner, self.config, self.past, self.position = runner, config, Rows(0, 0), 0

    def step(self, pieces, token_ids, embeds=None):
        """One step behind those before."""
        layout = step_layout(pieces, self.config.frame_num_tokens, self.config.num_kept)
        self.runner.step(layout, token_ids, embeds, position=self.position, past=self.past)
        self.past = self.past.plus(Rows(layout.num_tokens, layout.num_rows))
        self.position += layout.num_tokens
        return layout

    def feed(self, pieces, token_ids, embeds=None):
        """Logits of the last row of one step."""
        layout = self.step(pieces, token_ids, embeds)
        return self.runner.logits([layout.num_tokens - 1]).copy()

    def evict(self, eviction):
        """Drop rows of the past."""
        self.runner.evict(eviction)
        self.past = self.past.minus(eviction.dropped)
