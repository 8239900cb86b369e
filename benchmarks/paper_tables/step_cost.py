"""The cost of a training step of MoD and of full computation: time and memory, on a CPU.

Both arms take the same batch of synthetic streams, with a reply after every sixth frame. Times are
measured alternately in one process. Each memory measurement has its own process: a step on a short
batch initializes weights, optimizer and libraries, freed memory is returned to the system, and the
result is the peak of the resident set during one step minus the set before it (gradients,
activations and temporaries). Weights and the optimizer's two moments, 12 bytes per parameter, are
added by count.
"""

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.paper_tables.arms import ARMS
from benchmarks.paper_tables.runs import machine_facts
from benchmarks.paper_tables.settings import STANDARD
from mod_edge.config import ModelConfig
from mod_edge.plan.costs import compare_with_full
from mod_edge.progress import OnStep
from mod_edge.training.batches import Batch
from mod_edge.training.forward import BatchedDecoder
from mod_edge.training.initial_weights import initial_model
from mod_edge.training.train import versions
from mod_edge.training.trainer import adamw, trained_parameters

ARM_NAMES = ("full", "mod")
FRAMES_A_REPLY, REPLY_TOKENS = 6, 12
STATE_BYTES = 12  # per parameter: its weight and the optimizer's two moments, float32 each
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # see proc(5)


@dataclass(frozen=True)
class Batching:
    """The size of the batch and the number of measurements."""

    num_streams: int = 8
    num_frames: int = 61
    num_rounds: int = 9
    num_processes: int = 3


# The size of the bundled model, and one in which the decoder's matrix products dominate.
SIZES: tuple[Mapping[str, Any], ...] = (
    {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
)


def measure_step_cost(
    base: ModelConfig,
    *,
    sizes: Sequence[Mapping[str, Any]] = SIZES,
    batching: Batching = Batching(),
    on_step: OnStep,
) -> dict[str, Any]:
    """A JSON document: times (s) and peaks (bytes) for each size and arm, with the conditions.

    `base` has the vision config and vocabulary, `sizes` fields of `text_config`.
    """
    return {
        "batch": {
            "streams": batching.num_streams,
            "frames": batching.num_frames,
            "tokens": stream_batch(base, batching.num_streams, batching.num_frames).num_positions,
        },
        "processes": batching.num_processes,
        "dtype": STANDARD.train.dtype,
        "sizes": [_measure_size(base, size, batching, on_step) for size in sizes],
        "versions": versions(),
        "machine": machine_facts("cpu"),
    }


def _measure_size(
    base: ModelConfig, size: Mapping[str, Any], batching: Batching, on_step: OnStep
) -> dict[str, Any]:
    text = replace(base.text_config, **size)
    configs = {
        name: replace(base, text_config=text, mod_config=ARMS[name].mod, dtype="float32")
        for name in ARM_NAMES
    }
    title = f"D={text.hidden_size}, L={text.num_hidden_layers}"
    times = _step_times(configs, batching, lambda *part: on_step(f"time, {title}", *part))
    peaks = _step_peaks(configs, batching, lambda *part: on_step(f"memory, {title}", *part))
    costs = compare_with_full(configs["mod"], batching.num_frames, has_interval=True)
    return {
        "title": title,
        "time_s": times,
        "step_bytes": {name: round(median(peaks[name])) for name in configs},
        "state_bytes": {name: _state_bytes(config) for name, config in configs.items()},
        "flops_ratio": costs.flops_ratio,
    }


class TrainingStep:
    """A model in training, for repeated steps on one batch."""

    def __init__(self, config: ModelConfig) -> None:
        """A model with random weights."""
        settings = STANDARD.train
        model = initial_model(config, None, settings.seed)
        self._trained = trained_parameters(model, settings.trainable)
        for parameter in self._trained.values():
            parameter.requires_grad_(True)
        self._clip_norm = settings.clip_norm
        self._optimizer = adamw(self._trained, settings)
        self._decoder = BatchedDecoder(model, getattr(torch, settings.dtype))

    @property
    def num_trained(self) -> int:
        """The number of trained parameters."""
        return sum(parameter.numel() for parameter in self._trained.values())

    def take(self, batch: Batch) -> None:
        """One step: forward pass, backward pass and optimizer."""
        cross_entropy(self._decoder.logits(batch), batch.labels).backward()
        nn.utils.clip_grad_norm_(self._trained.values(), self._clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()


def stream_batch(config: ModelConfig, num_streams: int, num_frames: int) -> Batch:
    """Streams of equal layout with random ids and features."""
    num_tokens = config.frame_num_tokens
    is_frame: list[bool] = []
    is_label: list[bool] = []
    for frame in range(num_frames):
        reply = REPLY_TOKENS * ((frame + 1) % FRAMES_A_REPLY == 0)
        is_frame += [False] + [True] * num_tokens + [False] * reply
        is_label += [False] * num_tokens + [True] * (1 + reply)  # the last token's decision first
    generator = torch.Generator().manual_seed(0)
    frame_rows = np.flatnonzero(np.tile(is_frame, num_streams))
    label_rows = np.flatnonzero(np.tile(is_label, num_streams))
    is_text = ~torch.tensor(is_frame).repeat(num_streams, 1)
    vocabulary = config.text_config.vocab_size
    ids = torch.randint(vocabulary, is_text.shape, generator=generator) * is_text
    frame_index = torch.from_numpy(frame_rows).unflatten(0, (-1, num_tokens))
    features = torch.randn(
        (*frame_index.shape, config.vision_config.hidden_size), generator=generator
    )
    rows = torch.from_numpy(label_rows)
    labels = torch.randint(vocabulary, rows.shape, generator=generator)
    is_stream = ~is_text.flatten()[rows]
    frames = torch.arange(len(frame_index))
    return Batch(ids, is_text, frame_index, frames, features.half(), rows, labels, is_stream)


def _step_times(
    configs: Mapping[str, ModelConfig], batching: Batching, on_step: Callable[[float, float], None]
) -> dict[str, list[float]]:
    steps = {name: TrainingStep(config) for name, config in configs.items()}
    batch = stream_batch(next(iter(configs.values())), batching.num_streams, batching.num_frames)
    for step in steps.values():  # warm-up
        step.take(batch)
    times: dict[str, list[float]] = {name: [] for name in configs}
    for number in range(batching.num_rounds):
        on_step(number, batching.num_rounds)
        for name, step in steps.items():
            started = time.perf_counter()
            step.take(batch)
            times[name].append(round(time.perf_counter() - started, 5))
    return times


def _step_peaks(
    configs: Mapping[str, ModelConfig], batching: Batching, on_step: Callable[[float, float], None]
) -> dict[str, list[int]]:
    peaks: dict[str, list[int]] = {name: [] for name in configs}
    for number in range(batching.num_processes):
        on_step(number, batching.num_processes)
        for name, config in configs.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                peaks[name].append(process.submit(step_peak_bytes, config, batching).result())
    return peaks


def step_peak_bytes(config: ModelConfig, batching: Batching) -> int:
    """Peak resident bytes of one step; call it in a fresh process."""
    step = TrainingStep(config)
    batch = stream_batch(config, batching.num_streams, batching.num_frames)
    step.take(stream_batch(config, 1, FRAMES_A_REPLY))
    return peak_bytes(lambda: step.take(batch))


def peak_bytes(action: Callable[[], None]) -> int:
    """Peak resident bytes during `action`, minus those before it."""
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR_REFS.write_text(RESET_PEAK)
    before = _resident_bytes("VmRSS")
    action()
    return _resident_bytes("VmHWM") - before


def _resident_bytes(name: str) -> int:
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(value)


def _state_bytes(config: ModelConfig) -> int:
    return STATE_BYTES * TrainingStep(config).num_trained
