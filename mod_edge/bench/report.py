"""What the bench found, as rows and one JSON document, see docs/bench.md."""

from dataclasses import asdict, dataclass
from typing import Any

from mod_edge.bench.ceilings import Ceilings
from mod_edge.bench.device_facts import DeviceFacts
from mod_edge.bench.memory import Memory
from mod_edge.bench.other_load import OtherLoad
from mod_edge.bench.several_streams import StreamsRow
from mod_edge.bench.timing import Timing
from mod_edge.native.device_calls import DeviceCalls

FORMAT_VERSION = 1


@dataclass(frozen=True)
class BesideFull:
    """A row beside full computation, measured in the same rounds.

    Attributes:
        p50_ms: of full computation.
        ratio: of the model's time to that of full computation, the median of all rounds.
        counted: the same ratio of FLOPs; None of rows that hold more than decoder steps.
    """

    p50_ms: float
    ratio: float
    counted: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields, rounded."""
        fields = asdict(self)
        return {name: value and round(value, 4) for name, value in fields.items()}


@dataclass(frozen=True)
class Row:
    """One part of a stream.

    Attributes:
        name: for people.
        num_past: tokens in the window before it; None where it does not matter.
        per_run: how many of `unit` a run takes or makes.
        unit: "frames", "tokens" or "".
        timing: of its runs.
        least_ms: what moving its bytes and computing its products take at the measured ceilings;
            None if there is no such bound.
        beside_full: full computation; None if it is not measured.
        device_calls: of one run, on a GPU; None on a CPU.
    """

    name: str
    num_past: int | None
    per_run: int
    unit: str
    timing: Timing
    least_ms: float | None
    beside_full: BesideFull | None
    device_calls: DeviceCalls | None

    @property
    def per_s(self) -> float | None:
        """Frames or tokens per second, at the median."""
        return 1000 * self.per_run / self.timing.p50_ms if self.unit else None

    @property
    def reached(self) -> float | None:
        """The fraction of the ceiling that is reached, 0..1."""
        return None if self.least_ms is None else self.least_ms / self.timing.p50_ms

    def to_json(self) -> dict[str, Any]:
        """The fields and what follows from them."""
        return {
            "name": self.name,
            "num_past": self.num_past,
            "per_run": self.per_run,
            "unit": self.unit,
            **self.timing.to_json(),
            "per_s": _rounded(self.per_s),
            "least_ms": _rounded(self.least_ms),
            "reached": _rounded(self.reached),
            "beside_full": self.beside_full and self.beside_full.to_json(),
            "device_calls": self.device_calls and asdict(self.device_calls),
        }


@dataclass(frozen=True)
class LeftOut:
    """Something that was not measured, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class Window:
    """The window that was measured.

    Attributes:
        num_tokens: rows of dense layers.
        num_mod_rows: rows of MoD layers.
        num_seconds: of video in it.
        kv_bytes: of all keys and values.
        full_kv_bytes: of a full-computation model with as many tokens.
    """

    num_tokens: int
    num_mod_rows: int
    num_seconds: float
    kv_bytes: int
    full_kv_bytes: int


@dataclass(frozen=True)
class Rolling:
    """What evictions cost a stream of frames whose window is full.

    Attributes:
        every_frames: frames from one roll to the next.
        share: of a whole frame's time, 0..1.
    """

    every_frames: float
    share: float


@dataclass(frozen=True)
class BenchReport:
    """All that was measured.

    Attributes:
        bundle: its folder.
        numbers: precision, and the format of quantized weights.
        profile: name of the profile.
        backend: the backend and the reason for it.
        num_layers: of the decoder.
        num_mod_layers: of these.
        frame_num_tokens: N.
        num_kept: K.
        window: that was measured.
        device: and its state.
        other_load: while all was measured.
        ceilings: of the CPU, or of the GPU if the backend runs there; None if not measured.
        weight_bytes: of all graphs' weight files.
        load_s: from the bundle's manifest to a stream that can step.
        memory_before: of the Python process before that.
        memory: with a full window, after one run of every row, without full computation.
        device_memory_bytes: how much the GPU's free memory has shrunk since it was opened, at the
            same time; None on a CPU.
        rows: in order.
        rolling: of the full window.
        streams: 1, 2 and 4 that take turns on one model; empty if the profile has no room.
        left_out: and why.
        warnings: about how the stream ran.
    """

    bundle: str
    numbers: str
    profile: str
    backend: str
    num_layers: int
    num_mod_layers: int
    frame_num_tokens: int
    num_kept: int
    window: Window
    device: DeviceFacts
    other_load: OtherLoad
    ceilings: Ceilings | None
    weight_bytes: int
    load_s: float
    memory_before: Memory
    memory: Memory
    device_memory_bytes: int | None
    rows: tuple[Row, ...]
    rolling: Rolling
    streams: tuple[StreamsRow, ...]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """One JSON-able document."""
        return {
            "format_version": FORMAT_VERSION,
            "bundle": self.bundle,
            "numbers": self.numbers,
            "profile": self.profile,
            "backend": self.backend,
            "num_layers": self.num_layers,
            "num_mod_layers": self.num_mod_layers,
            "frame_num_tokens": self.frame_num_tokens,
            "num_kept": self.num_kept,
            "window": asdict(self.window),
            "device": self.device.to_json(),
            "other_load": self.other_load.to_json(),
            "ceilings": self.ceilings and self.ceilings.to_json(),
            "weight_bytes": self.weight_bytes,
            "load_s": round(self.load_s, 3),
            "memory_before": self.memory_before.to_json(),
            "memory": self.memory.to_json(),
            "device_memory_bytes": self.device_memory_bytes,
            "rows": [row.to_json() for row in self.rows],
            "rolling": {name: round(value, 5) for name, value in asdict(self.rolling).items()},
            "streams": [row.to_json() for row in self.streams],
            "left_out": [asdict(each) for each in self.left_out],
            "warnings": list(self.warnings),
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
