"""The device that figures were measured on: processor, and the state that decides its speed."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mod_edge.doctor.facts import look_at_machine

ROOT = Path("/")
# As Linux names them, of the instructions that matrix products use: x86, then ARM.
INSTRUCTION_SETS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
CPUS, DEVFREQ = "sys/devices/system/cpu", "sys/class/devfreq"
THERMAL = "sys/class/thermal"
# Of NVIDIA's nvpmodel on a Jetson: the chosen mode's number, and the modes with their names.
POWER_STATUS, POWER_MODES = "var/lib/nvpmodel/status", "etc/nvpmodel.conf"
LEAST_CACHE_BYTES = 2**20  # assumed where the system does not report a cache


@dataclass(frozen=True)
class DeviceFacts:
    """A device and its state; empty or None where the system does not report a value.

    Attributes:
        name: board or processor.
        system: operating system and architecture.
        num_cores: that this process may use.
        num_threads: that ONNX Runtime computes with.
        instruction_sets: of `INSTRUCTION_SETS`, those that the processor has.
        cache_bytes: of the largest cache.
        power_mode: of nvpmodel, on a Jetson.
        clocks_mhz: by processor or device, the clock now and at most.
        temperatures_c: by thermal zone.
    """

    name: str
    system: str
    num_cores: int
    num_threads: int
    instruction_sets: tuple[str, ...]
    cache_bytes: int
    power_mode: str | None
    clocks_mhz: dict[str, tuple[int, int]]
    temperatures_c: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


def look_at_device(num_threads: int, root: Path = ROOT) -> DeviceFacts:
    """The device; `root` is the folder below which `/proc`, `/sys`, `/etc` and `/var` are read."""
    machine = look_at_machine()
    return DeviceFacts(
        name=machine.name,
        system=f"{machine.system}, {machine.architecture}",
        num_cores=machine.num_cores,
        num_threads=num_threads,
        instruction_sets=_instruction_sets(root),
        cache_bytes=_cache_bytes(root),
        power_mode=_power_mode(root),
        clocks_mhz=dict(_clocks(root)),
        temperatures_c=dict(_temperatures(root)),
    )


def _instruction_sets(root: Path) -> tuple[str, ...]:
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    found = set(line[1].split()) if line else set()
    return tuple(name for name in INSTRUCTION_SETS if name in found)


def _cache_bytes(root: Path) -> int:
    sizes = [_read(path) for path in (root / CPUS / "cpu0/cache").glob("index*/size")]
    kib = [int(size.removesuffix("K")) for size in sizes if re.fullmatch(r"\d+K", size)]
    return max([LEAST_CACHE_BYTES, *(1024 * each for each in kib)])


def _power_mode(root: Path) -> str | None:
    chosen = re.search(r"pmode:(\d+)", _read(root / POWER_STATUS))
    if chosen is None:
        return None
    number = int(chosen[1])
    modes = re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", _read(root / POWER_MODES))
    names: dict[int, str] = {int(mode): name for mode, name in modes}
    return names.get(number, f"mode {number}")


def _clocks(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """The clocks of processors, in kHz in sysfs, and of a GPU or memory, in Hz."""
    for folder in sorted((root / CPUS).glob("cpu[0-9]*/cpufreq")):
        now, most = (_read(folder / f"scaling_{which}_freq") for which in ("cur", "max"))
        if now.isdecimal() and most.isdecimal():
            yield folder.parent.name, (int(now) // 1000, int(most) // 1000)
    for folder in sorted((root / DEVFREQ).glob("*")):
        now, most = (_read(folder / f"{which}_freq") for which in ("cur", "max"))
        if now.isdecimal() and most.isdecimal():
            yield folder.name, (int(now) // 10**6, int(most) // 10**6)


def _temperatures(root: Path) -> Iterator[tuple[str, float]]:
    for folder in sorted((root / THERMAL).glob("thermal_zone*")):
        name, value = _read(folder / "type"), _read(folder / "temp")
        if name and re.fullmatch(r"-?\d+", value):
            yield name, int(value) / 1000


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # a sensor that is switched off cannot be read either
        return ""
