"""A TensorRT model on the stand-ins, with access to everything that a test checks."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from mod_edge.bundle.bundle import Bundle, open_bundle
from mod_edge.bundle.shape_ranges import StepLimits
from mod_edge.config import ModelConfig
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.native.trt import TensorRT
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.layout import step_layout
from mod_edge.runtime.device.device_model import DeviceModel, DeviceStream
from mod_edge.runtime.device.trt_model import load_trt_model
from mod_edge.runtime.loaded_model import StreamLimits
from tests.native.stand_in_driver import StandInCudart
from tests.native.stand_in_tensorrt import build_stand_ins, stand_in_tensorrt

DELTA_CAPACITY = Rows(dense=260, mod=132)
MAX_STEP_TOKENS, FRAMES_PER_STEP = 64, 3


@dataclass
class StandIn:
    """A machine with a stand-in GPU and a bundle with engines for it."""

    bundle: Bundle
    limits: StreamLimits
    cudart: StandInCudart
    tensorrt: TensorRT
    loaded: list[DeviceModel] = field(default_factory=list)
    opened: list[DeviceStream] = field(default_factory=list)

    @property
    def config(self) -> ModelConfig:
        """The model's config."""
        return self.bundle.config

    def load(self) -> DeviceModel:
        """Load the model on this GPU; `close` closes it."""
        model = load_trt_model(
            self.bundle,
            self.limits,
            driver=CudaDriver(self.cudart),
            tensorrt=self.tensorrt,
        )
        self.loaded.append(model)
        return model

    def open(self) -> DeviceStream:
        """Open a stream on its own model; `close` closes both."""
        stream = self.load().open_stream()
        self.opened.append(stream)
        return stream

    def build(self, **changes):
        """Build engines for the bundle, see `build_stand_ins`."""
        limits = StepLimits(MAX_STEP_TOKENS, 2, FRAMES_PER_STEP, self.limits.capacity)
        return build_stand_ins(self.bundle, changes.pop("limits", limits), self.tensorrt, **changes)

    def close(self) -> None:
        """Close all streams, then all models."""
        for stream in self.opened:
            stream.close()
        for model in self.loaded:
            model.close()


def stand_in_for(folder: Path, **memory) -> StandIn:
    """A machine for the bundle's target, without engines."""
    bundle = open_bundle(folder)
    capacity = bundle.lowering.capacity or DELTA_CAPACITY
    limits = StreamLimits(capacity, MAX_STEP_TOKENS, FRAMES_PER_STEP)
    cudart = StandInCudart(**memory)
    compilers = {"rtx": ("tensorrt_rtx", "1.7.1.116"), "tensorrt-delta": ("tensorrt", "10.3.0")}
    tensorrt = stand_in_tensorrt(cudart, *compilers[bundle.target.name])
    return StandIn(bundle, limits, cudart, tensorrt)


def linked_copy(bundle: Path, folder: Path) -> Path:
    """A copy of the bundle without engines, of hard links: do not write to its files."""
    ignore = shutil.ignore_patterns("engines")
    return shutil.copytree(bundle, folder, ignore=ignore, copy_function=os.link)


class Feeder:
    """Feeds steps one after another and counts the rows."""

    def __init__(self, stream, config):
        self.stream, self.config, self.past, self.position = stream, config, Rows(0, 0), 0

    def step(self, pieces, token_ids, embeds=None):
        """Feed the next step."""
        layout = step_layout(pieces, self.config.frame_num_tokens, self.config.num_kept)
        self.stream.step(layout, token_ids, embeds, position=self.position, past=self.past)
        self.past = self.past.plus(Rows(layout.num_tokens, layout.num_rows))
        self.position += layout.num_tokens
        return layout

    def feed(self, pieces, token_ids, embeds=None):
        """Feed the next step and return the logits of its last row."""
        layout = self.step(pieces, token_ids, embeds)
        return self.stream.logits([layout.num_tokens - 1]).copy()

    def evict(self, eviction):
        """Drop rows of the past."""
        self.stream.evict(eviction)
        self.past = self.past.minus(eviction.dropped)
