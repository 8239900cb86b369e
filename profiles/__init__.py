"""Device profiles: what graphs and engines are built for on a device, and how streams run on it.

A profile is a TOML file whose keys are the fields of `Profile`. The files in this folder ship with
the package and are known by name; any other profile is given by its path.
"""

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from mod_edge.dataclass_reader import TOML, dataclass_from_dict
from mod_edge.document_parser import parse_toml
from mod_edge.errors import ConfigError, nearest_hint
from mod_edge.plan.targets import DTYPES, TARGETS

BUILDER_LEVELS = range(6)  # TensorRT's optimization levels, 0 (fast build) to 5 (fast engine)

PIXEL_FORMAT = r"([A-Z0-9]{3}[A-Z0-9 ])?"


@dataclass(frozen=True)
class FrameRange:
    """Frames per step: engines accept `min` to `max`, `run` uses `opt` by default."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class Camera:
    """The capture format requested from a camera: pixels and frames per second.

    Vision encoders take 224 to 384 pixels per side, so larger frames would only be downscaled, and
    nearly every USB camera delivers the default size uncompressed at 30 frames/s.

    Attributes:
        pixel_format: V4L2's four letters, such as MJPG or YUYV; empty leaves it to the camera.
    """

    width: int = 640
    height: int = 480
    fps: float = 30.0
    pixel_format: str = ""


@dataclass(frozen=True)
class Profile:
    """The settings that depend on the device, not on the checkpoint.

    Attributes:
        name: the name of its file without `.toml`; messages use it.
        targets: targets that such a device supports, best first; of `TARGETS`.
        precision: a precision that at least one of the targets supports.
        window: length of the KV cache, "120s" of video or "4096" tokens.
        frames_per_step: frames per step; `min` is 1, the step of a live stream.
        max_step_tokens: most tokens per step, at least 1; a longer prefill is split.
        max_new_tokens: most tokens of one reply, at least 1.
        evict_fraction: fraction of the window that one eviction drops, between 0 and 1.
        workspace_mib: scratch memory that an engine may use, at least 1.
        builder_optimization_level: how long TensorRT searches for fast kernels, 0 to 5.
        compute_capabilities: of the GPUs, "89" for 8.9; empty if no engines are built.
        camera: requested capture format; files and network streams are read as they are.
    """

    name: str
    targets: tuple[str, ...]
    precision: str
    window: str
    frames_per_step: FrameRange
    max_step_tokens: int
    max_new_tokens: int
    evict_fraction: float = 0.125  # an eviction moves the remaining rows once
    workspace_mib: int = 1024
    builder_optimization_level: int = 3  # TensorRT's default; the gain of higher ones is unmeasured
    compute_capabilities: tuple[str, ...] = ()
    camera: Camera = Camera()

    def __post_init__(self) -> None:
        frames = self.frames_per_step
        faults = [
            f"{key} = {value}: wanted at least 1"
            for key, value in (
                ("max_step_tokens", self.max_step_tokens),
                ("max_new_tokens", self.max_new_tokens),
                ("workspace_mib", self.workspace_mib),
                ("camera.width", self.camera.width),
                ("camera.height", self.camera.height),
                ("camera.fps", self.camera.fps),
            )
            if not value >= 1
        ]
        if not re.fullmatch(PIXEL_FORMAT, self.camera.pixel_format):
            faults.append(
                f'camera.pixel_format = "{self.camera.pixel_format}": wanted V4L2\'s four letters '
                'as "MJPG", or "" for any'
            )
        if not frames.min == 1 <= frames.opt <= frames.max:
            faults.append(
                f"frames_per_step = {frames.min}, {frames.opt}, {frames.max}: "
                "wanted min = 1 <= opt <= max"
            )
        if not 0 < self.evict_fraction < 1:
            faults.append(f"evict_fraction = {self.evict_fraction}: wanted between 0 and 1")
        if not _is_window(self.window):
            faults.append(f'window = "{self.window}": wanted seconds as "120s" or tokens as "4096"')
        if self.builder_optimization_level not in BUILDER_LEVELS:
            faults.append(
                f"builder_optimization_level = {self.builder_optimization_level}: wanted 0 to 5"
            )
        faults += self._target_faults()
        if faults:
            raise ConfigError(f'profile "{self.name}": {"; ".join(faults)}')

    def _target_faults(self) -> list[str]:
        listed = ", ".join(TARGETS)
        faults = [
            f"targets: unknown {name!r}{nearest_hint(name, TARGETS)}, known are {listed}"
            for name in self.targets
            if name not in TARGETS
        ]
        if not self.targets:
            faults.append(f"targets is empty: wanted one or more of {listed}")
        known = [TARGETS[name] for name in self.targets if name in TARGETS]
        if self.precision not in DTYPES:
            faults.append(f'precision = "{self.precision}": wanted one of {", ".join(DTYPES)}')
        elif known and not any(self.precision in target.precisions for target in known):
            faults.append(f'precision = "{self.precision}": none of its targets supports it')
        faults += [
            f'compute_capabilities: "{capability}": wanted digits, "89" for 8.9'
            for capability in self.compute_capabilities
            if not re.fullmatch(r"\d{2,3}", capability)
        ]
        return faults


def load_profile(name_or_path: str | Path) -> Profile:
    """The shipped profile of that name, or the profile in a TOML file.

    Anything that ends with `.toml` is a path, anything else a name.

    Raises:
        ConfigError: an unknown name, an unreadable file, or a value that is not allowed.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"cannot read the profile {path}: {exc}") from exc
        return _profile_from_toml(text, name=path.stem, source=str(path))
    name = str(name_or_path)
    known = profile_names()
    if name not in known:
        raise ConfigError(
            f"unknown profile {name!r}{nearest_hint(name, known)}, known are {', '.join(known)}; "
            "give your own profile as path/to/name.toml"
        )
    text = (files(__name__) / f"{name}.toml").read_text(encoding="utf-8")
    return _profile_from_toml(text, name=name, source=f'profile "{name}"')


def profile_names() -> list[str]:
    """Names of the profiles that ship with the package, sorted."""
    entries = (Path(entry.name) for entry in files(__name__).iterdir())
    return sorted(entry.stem for entry in entries if entry.suffix == ".toml")


def _profile_from_toml(text: str, *, name: str, source: str) -> Profile:
    try:
        table = parse_toml(text)
    except ValueError as exc:
        raise ConfigError(f"{source} is not valid TOML: {exc}") from exc
    return dataclass_from_dict(
        Profile, table, source, syntax=TOML, error=ConfigError, given={"name": name}
    )


def _is_window(window: str) -> bool:
    return bool(re.fullmatch(r"\d+(\.\d+)?s|\d+", window)) and float(window.rstrip("s")) > 0
