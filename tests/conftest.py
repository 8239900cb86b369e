"""Shared fixtures: small odd-sized models, the tiny checkpoint, its bundles and the clip."""

import fcntl
import functools
import os
import pickle
import shutil
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mod_edge.config import MoDConfig, ModelConfig, StreamConfig, TextConfig, VisionConfig
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.weight_forms import AS_DTYPE

# Before anything reads them: variables of terminals and CI services change the printed output, and
# OpenCV's log levels would hide the reasons of its failures.
for variable in (
    *("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"),
    *("TTY_COMPATIBLE", "TTY_INTERACTIVE", "TERMINAL_WIDTH"),
    *("OPENCV_LOG_LEVEL", "OPENCV_FFMPEG_LOGLEVEL"),
):
    os.environ.pop(variable, None)
os.environ["TERM"] = "xterm-256color"

# Before torch is imported. Models this small are slower with more threads: tests/model/ measured
# 60 s with two threads on two busy cores, 16 s with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Cache rows of the in_place bundles: few enough to roll within the clip.
CAPACITY = Rows(dense=260, mod=148)
CLIP = Path(__file__).resolve().parent / "data" / "box.mp4"
INTERLEAVED = MoDConfig()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """ONNX Runtime with one thread too: a second one spins and takes time from other processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mod_edge.native.onnx_session.usable_cores", lambda: 1)
        yield


@pytest.fixture(scope="session")
def clip() -> Path:
    """15.2 s from a real webcam: 457 frames of 384 x 288 pixels at 29.97 frames/s."""
    return CLIP


@pytest.fixture(scope="session")
def ffmpeg() -> Callable[..., None]:
    """`ffmpeg(*arguments)`: writes a file with FFmpeg; skips the test where it is missing."""
    command = shutil.which("ffmpeg")
    if command is None:
        pytest.skip("needs the command ffmpeg; on Debian: apt-get install ffmpeg")

    def run(*arguments: str | Path) -> None:
        line = [command, "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *arguments]
        subprocess.run(line, check=True)

    return run


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, make)`: the path of that name, which `make(path)` writes for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def written(name: str, make: Callable[[Path], object]) -> Path:
        path = shared / name
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
            if not path.exists():
                part = shared / f"{name}.part"  # what is interrupted must not be taken for whole
                make(part)
                part.rename(path)
        return path

    return written


@pytest.fixture(scope="session")
def tiny_checkpoint(once) -> Path:
    """The tiny preset's checkpoint, shared by all tests: copy it before changing it."""
    from mod_edge.model.presets import preset_config, write_random_checkpoint

    def write(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        write_random_checkpoint(preset_config("tiny"), folder, seed=1)

    return once("checkpoint", write)


@pytest.fixture(scope="session")
def write_tiny(tmp_path_factory):
    """`write_tiny(mod)`: a tiny checkpoint with that `mod_config` (0.1 s)."""
    from mod_edge.model.presets import preset_config, write_random_checkpoint

    def write(mod: MoDConfig | None) -> Path:
        folder = tmp_path_factory.mktemp("routed")
        config = replace(preset_config("tiny"), mod_config=mod)
        write_random_checkpoint(config, folder, seed=1)
        return folder

    return write


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint, once) -> Path:
    """The tiny checkpoint's bundle (25 s, once per run): copy it before changing it."""
    from mod_edge.export.bundle_writer import export_bundle
    from mod_edge.model.checkpoint import Checkpoint

    return once("bundle", lambda folder: export_bundle(Checkpoint(tiny_checkpoint), folder))


@pytest.fixture(scope="session")
def export_tiny(once):
    """`export_tiny(checkpoint, folder, lowering, force=False)`: exports a tiny checkpoint.

    Targets with the same dialect, precision and use of unused rows share their traces (10 s, once
    per run); graphs are quantized, lowered, written and checked each time.
    """
    from mod_edge.export import bundle_writer as bundle_module
    from mod_edge.export.bundle_writer import export_bundle
    from mod_edge.export.trace import with_form
    from mod_edge.model.checkpoint import Checkpoint

    trace, topologies = bundle_module.trace, {}

    def traced_once(config, signature, lowering):
        rows = "all-rows" if lowering.binds_unused_rows else "used-rows"
        key = (signature.kind, lowering.dialect, lowering.precision, rows)
        if key not in topologies:
            plain = replace(lowering, weight_format=AS_DTYPE)
            name = "-".join((signature.kind.name, *key[1:]))
            file = once(
                f"{name}.pickle",
                lambda path: path.write_bytes(pickle.dumps(trace(config, signature, plain))),
            )
            topologies[key] = pickle.loads(file.read_bytes())
        form = lowering.weight_form(signature.kind)
        return topologies[key] if form is None else with_form(topologies[key], form)

    def export(checkpoint, folder, lowering, *, force=False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bundle_module, "trace", traced_once)
            export_bundle(Checkpoint(checkpoint), folder, lowering=lowering, force=force)

    return export


@pytest.fixture(scope="session")
def bundle_for(tiny_checkpoint, export_tiny, once):
    """`bundle_for(target, precision, weights="as-dtype")`: the tiny bundle for it, once per run.

    `in_place` caches have `CAPACITY` rows. Copy a bundle before changing it.
    """
    from mod_edge.plan.targets import Lowering, target_named

    @functools.cache
    def make(target: str, precision: str, weights: str = AS_DTYPE) -> Path:
        capacity = CAPACITY if target_named(target).dialect == "in_place" else None
        lowering = Lowering(target, precision, capacity, weights)
        return once(
            f"{target}-{precision}-{weights}",
            lambda folder: export_tiny(tiny_checkpoint, folder, lowering),
        )

    return make


@pytest.fixture(scope="session")
def any_bundle(tiny_bundle, bundle_for):
    """`any_bundle(target, precision)`: `tiny_bundle` for cpu fp32, else `bundle_for`."""
    cpu = ("cpu", "fp32")
    return lambda *lowering: tiny_bundle if lowering == cpu else bundle_for(*lowering)


@pytest.fixture(scope="session")
def recorded_stream(tiny_checkpoint):
    """The tiny reference model, and the recorder and trace of a synthetic video on it (4 s)."""
    from mod_edge.model.checkpoint import Checkpoint
    from mod_edge.plan.targets import CPU_FP32
    from mod_edge.verification.reference_stream import MAX_FRAMES, record_stream
    from mod_edge.verification.sample_video import SampleVideo

    checkpoint = Checkpoint(tiny_checkpoint)
    model = checkpoint.load_model()
    video = SampleVideo(checkpoint.config.stream_config.frame_fps, MAX_FRAMES)
    return model, *record_stream(model, checkpoint.tokenizer, video, CPU_FP32)


@pytest.fixture(scope="session")
def recording_of(recorded_stream):
    """`recording_of(signature, lowering)`: that graph's reference steps from `recorded_stream`."""
    from mod_edge.verification.reference_graph import ReferenceGraph

    model, recorder, _ = recorded_stream

    @functools.cache
    def make(signature, lowering):
        return ReferenceGraph(model, signature, lowering, recorder).recording()

    return make


@pytest.fixture(scope="session")
def built_bundle(bundle_for, tmp_path_factory) -> Path:
    """The `rtx` fp16 bundle with engines for profile rtx-ada (8 s, once per run): copy it first."""
    pytest.importorskip("tensorrt_rtx")
    from mod_edge.bundle.bundle import open_bundle
    from mod_edge.export.engines import build_engines
    from mod_edge.profiles import load_profile

    folder = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(bundle_for("rtx", "fp16"), folder)
    build_engines(open_bundle(folder), load_profile("rtx-ada"), compute_capability="89")
    return folder


def odd_config(
    *,
    num_layers: int = 4,
    num_key_value_heads: int = 2,
    mod: MoDConfig | None = INTERLEAVED,
    **text: object,
) -> ModelConfig:
    """A config in which no two sizes are equal, so that a swapped axis shows.

    D=48, H=6, G=`num_key_value_heads` (2 or 3), E=16, so that H*E is not D; N=10 tokens per frame,
    pooled from 4 x 4 patches (not divisible by 3); `text` has further fields of `TextConfig`.
    """
    return ModelConfig(
        TextConfig(48, 80, num_layers, 6, num_key_value_heads, 16, 67, **text),
        VisionConfig(32, 40, 2, 4, image_size=59, patch_size=14),  # three pixels are cut off
        StreamConfig("You watch.", 0, 1, ",", 2, "]\n", 3),
        mod,
    )


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ModelConfig]:
    """The function `odd_config`."""
    return odd_config


@pytest.fixture(scope="session")
def make_model():
    """`make_model(config, seed=0, dtype=None)`: the reference model with seeded random weights.

    Attention is not flat, routers do not saturate, norms are not all ones and biases not zero.
    Every tensor is seeded by its name: models that differ only in `mod_config` differ only in their
    routers.
    """
    import torch

    from mod_edge.model.video_llm import VideoLLM

    def make(config, *, seed=0, dtype=None):
        model = VideoLLM(config).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.1 * noise + (not name.endswith("bias")))
            elif name.endswith("embed_tokens.weight"):
                parameter.copy_(noise)
            else:
                gain = 0.3 if "router" in name else 2.0
                parameter.copy_(noise * gain / parameter[0].numel() ** 0.5)
        return model if dtype is None else model.to(dtype)

    return make
