"""Run profiles: how far to look back, how much to feed a step, how long to answer.

A profile is a TOML file whose keys are the fields of `Profile`. The files that stand beside this
one ship with the package and are known by name; any other profile is given by its path.
"""

import dataclasses
import re
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from mod_edge.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Profile:
    """Settings of one run: those that the device decides, not the checkpoint.

    Attributes:
        name: the name of its file without `.toml`; messages use it.
        window: how much stream the KV cache holds, "120s" of video or "4096" tokens.
        frames_per_step: frames fed in one step, at least 1.
        max_step_tokens: most tokens fed in one step, at least 1; a longer prefill is split.
        max_new_tokens: most tokens of one answer, at least 1.
        evict_fraction: part of the window that one eviction drops, between 0 and 1.
    """

    name: str
    window: str
    frames_per_step: int
    max_step_tokens: int
    max_new_tokens: int
    evict_fraction: float = 0.125

    def __post_init__(self) -> None:
        faults = [
            f"{key} = {value}: wanted at least 1"
            for key, value in (
                ("frames_per_step", self.frames_per_step),
                ("max_step_tokens", self.max_step_tokens),
                ("max_new_tokens", self.max_new_tokens),
            )
            if value < 1
        ]
        if not 0 < self.evict_fraction < 1:
            faults.append(f"evict_fraction = {self.evict_fraction}: wanted between 0 and 1")
        if not _is_window(self.window):
            faults.append(f'window = "{self.window}": wanted seconds as "120s" or tokens as "4096"')
        _raise_faults(f'profile "{self.name}"', faults)


def load_profile(name_or_path: str | Path) -> Profile:
    """The shipped profile of that name, or the one in a TOML file of the user's.

    Anything that ends with `.toml` is a path, anything else is a name.

    Raises:
        ConfigError: the name is unknown, the file cannot be read, or its values are not allowed.
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
        near = get_close_matches(name, known, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise ConfigError(
            f'no profile is called "{name}"{hint} '
            f"(known: {', '.join(known)}; a profile of your own is given as path/to/name.toml)"
        )
    text = (files(__name__) / f"{name}.toml").read_text(encoding="utf-8")
    return _profile_from_toml(text, name=name, source=f'profile "{name}"')


def profile_names() -> list[str]:
    """Names of the profiles that ship with the package, sorted."""
    entries = (Path(entry.name) for entry in files(__name__).iterdir())
    return sorted(entry.stem for entry in entries if entry.suffix == ".toml")


def _profile_from_toml(text: str, *, name: str, source: str) -> Profile:
    """Checks keys and types, all faults at once; `Profile` itself checks the ranges."""
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{source} is not valid TOML: {exc}") from exc
    fields = {field.name: field for field in dataclasses.fields(Profile) if field.name != "name"}
    faults = [f"unknown key {key}{_nearest(key, fields)}" for key in values if key not in fields]
    for key, field in fields.items():
        if key in values:
            faults += _type_faults(key, values[key], field.type)
        elif field.default is dataclasses.MISSING:
            faults.append(f"missing key {key}")
    _raise_faults(source, faults)
    return Profile(name=name, **values)


def _type_faults(key: str, value: object, wanted: object) -> list[str]:
    # by type() and not isinstance(): TOML's true is an int to Python
    allowed = (int, float) if wanted is float else (wanted,)
    if type(value) in allowed:
        return []
    hint = f', write {key} = "{value}"' if wanted is str else ""
    return [f"{key} = {value!r}: wanted {getattr(wanted, '__name__', wanted)}{hint}"]


def _nearest(key: str, known: dict[str, Any]) -> str:
    near = get_close_matches(key, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _is_window(window: str) -> bool:
    return bool(re.fullmatch(r"\d+(\.\d+)?s|\d+", window)) and float(window.rstrip("s")) > 0


def _raise_faults(source: str, faults: list[str]) -> None:
    if faults:
        raise ConfigError(f"{source}: " + "; ".join(faults))
