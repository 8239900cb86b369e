"""Measure every part of a stream on a bundle, and full computation beside it."""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import reduce
from itertools import cycle, islice
from pathlib import Path
from statistics import median

from mod_edge.bench.ceilings import Ceilings, measure_ceilings, measure_gpu_ceilings
from mod_edge.bench.device_facts import look_at_device
from mod_edge.bench.full_computation import full_computation_model
from mod_edge.bench.memory import memory_now
from mod_edge.bench.other_load import LoadWatch
from mod_edge.bench.report import BenchReport, BesideFull, LeftOut, Rolling, Row, Window
from mod_edge.bench.several_streams import NUM_STREAMS, measure_streams
from mod_edge.bench.step_work import BundleWork, layer_weight_bytes, weight_bytes
from mod_edge.bench.steps import ROLL, WHOLE_FRAME, BenchStream, Case, frames_of
from mod_edge.bench.timing import Timer, take_turns
from mod_edge.bundle.bundle import Bundle, open_bundle
from mod_edge.config import ModelConfig
from mod_edge.errors import BackendError, CacheError, ConfigError
from mod_edge.native.device_calls import DeviceCalls
from mod_edge.native.onnx_session import num_threads
from mod_edge.plan.costs import full_computation, step_cost
from mod_edge.plan.kv_budget import KvPlan, cache_bytes, rows_of_frames
from mod_edge.plan.kv_window import Rows
from mod_edge.profiles import Profile
from mod_edge.progress import OnStep, not_shown
from mod_edge.runtime.backends import BackendChoice, load_model
from mod_edge.runtime.loaded_model import LoadedModel, StreamLimits, StreamState

FRAME_COUNTS = (1, 2, 5, 10)  # of a step
RUNS_TO_CAPTURE = 3  # one without a CUDA graph, one that captures it, one that launches it
# Rounds of several streams: as many as take this share of the time, within limits.
STREAMS_SHARE, LEAST_ROUNDS, MOST_ROUNDS = 0.15, 3, 50
# The runtime's own allocations raise the one, those of ONNX Runtime and TensorRT the other.
OUT_OF_MEMORY = (CacheError, BackendError)
SMALL_FILL_TOKENS = 1000  # of the window's first fill, or a quarter of a smaller window


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        backend: one of `backends.BACKENDS` but `torch`.
        device: one of `backends.DEVICES`.
        profile: as in `Bundle.profile`.
        window: as in `Bundle.plan`.
        kv_budget_mib: as in `Bundle.plan`.
        seconds: to spend on timing; a slow bundle takes longer, for five rounds of every row.
    """

    backend: str = "auto"
    device: str = "auto"
    profile: str | Path | None = None
    window: str | None = None
    kv_budget_mib: float | None = None
    seconds: float = 40.0

    def __post_init__(self) -> None:
        if self.backend == "torch":
            raise ConfigError(
                "bench measures a bundle's own graphs, not the PyTorch reference; take backend "
                "auto, tensorrt or onnx"
            )
        if not 0 < self.seconds < math.inf:
            raise ConfigError(f"seconds={self.seconds:g}, wanted a number above 0")


def bench_bundle(folder: Path, options: BenchOptions, on_step: OnStep = not_shown) -> BenchReport:
    """The measurements of the bundle at `folder`.

    Raises:
        BundleError: the bundle is missing, damaged or partial.
        ConfigError: settings contradict each other, or the window or a step is too small.
        BackendError: the backend cannot run here.
        CacheError: there is not enough memory for the window.
    """
    choice = BackendChoice(options.backend, options.device)
    watch, memory_before = LoadWatch(), memory_now()
    on_step("loading", 0, options.seconds)
    started = time.perf_counter()
    bundle = open_bundle(folder)
    bundle.require_whole()
    profile = bundle.profile(options.profile)
    plan = bundle.plan(
        profile.window,
        profile.max_new_tokens,
        window=options.window,
        kv_budget_mib=options.kv_budget_mib,
    )
    counts, left_out = frame_counts(bundle, profile, plan.capacity)
    limits = StreamLimits(
        plan.capacity,
        profile.max_step_tokens,
        counts[-1],
        # At two fills: frames, text, a query, and the past of a reply may grow into another shape.
        captured_shapes=1 + 2 * (len(counts) + 3),
    )
    model, reason = load_model(bundle, limits, choice)
    with ExitStack() as release:
        release.enter_context(model)
        state = release.enter_context(model.open_stream())
        load_s = time.perf_counter() - started
        run = BenchRun(bundle, profile, plan.capacity, model, counts, state)
        run.warm_up()
        memory = memory_now()
        device_memory_bytes = None if model.driver is None else model.driver.used_bytes
        device = look_at_device(num_threads())
        measured = [_ceilings(model, device.cache_bytes)]
        if reason_not_full := run.add_full_computation(release):
            left_out.append(LeftOut("full computation", reason_not_full))
        run.time_all(options.seconds, on_step)
        # Once more: what disturbed the one may not disturb the other.
        measured.append(_ceilings(model, device.cache_bytes))
        known = [each for each in measured if isinstance(each, Ceilings)]
        ceilings = reduce(Ceilings.best, known) if known else None
        if ceilings is None:
            left_out.append(LeftOut("ceilings", str(measured[0])))
        rows = run.rows(ceilings)
        config = bundle.config
        report = BenchReport(
            bundle=str(folder),
            numbers=bundle.lowering.numbers,
            profile=profile.name,
            backend=f"{model.name}: {reason}",
            num_layers=config.text_config.num_hidden_layers,
            num_mod_layers=len(config.mod_layers),
            frame_num_tokens=config.frame_num_tokens,
            num_kept=config.num_kept,
            window=_window(config, plan, bundle.lowering.dtype),
            device=device,
            other_load=watch.report(),
            ceilings=ceilings,
            weight_bytes=sum(weight_bytes(bundle, each) for each in bundle.signatures()),
            load_s=load_s,
            memory_before=memory_before,
            memory=memory,
            device_memory_bytes=device_memory_bytes,
            rows=tuple(rows),
            rolling=run.rolling(rows),
            streams=(),
            left_out=tuple(left_out),
            warnings=tuple(state.warnings),
        )
    # On a model of their own, after this one is closed.
    return _with_streams(report, bundle, choice, profile, plan, run.small_fill, options, on_step)


def _with_streams(
    report: BenchReport,
    bundle: Bundle,
    choice: BackendChoice,
    profile: Profile,
    plan: KvPlan,
    num_past: int,
    options: BenchOptions,
    on_step: OnStep,
) -> BenchReport:
    """The report with several streams of one model, or with the reason why there are none."""
    counts = [count for count in NUM_STREAMS if count <= profile.frames_per_step.max]

    def without(reason: str) -> BenchReport:
        return replace(report, left_out=(*report.left_out, LeftOut("several streams", reason)))

    if len(counts) == 1:
        return without(f"profile {profile.name} encodes {frames_of(1)} at once")
    on_step("several streams", options.seconds, options.seconds)
    frame_ms = next(row.timing.p50_ms for row in report.rows if row.name == WHOLE_FRAME)
    num_rounds = round(STREAMS_SHARE * 1000 * options.seconds / (sum(counts) * frame_ms))
    try:
        streams = measure_streams(
            bundle,
            choice,
            profile,
            plan,
            num_past=num_past,
            num_rounds=min(max(num_rounds, LEAST_ROUNDS), MOST_ROUNDS),
            counts=counts,
        )
    except OUT_OF_MEMORY as exc:  # each has a cache of its own
        return without(str(exc))
    return replace(report, streams=tuple(streams))


def frame_counts(
    bundle: Bundle, profile: Profile, capacity: Rows
) -> tuple[list[int], list[LeftOut]]:
    """The counts of `FRAME_COUNTS` that a step may have, ascending, and why it may not have others.

    Raises:
        ConfigError: not even a step of one frame is possible.
    """
    most = profile.frames_per_step.max
    counts, left_out = [], []
    for count in FRAME_COUNTS:
        num_tokens = rows_of_frames(bundle.config, count, num_before=1).dense
        if count > most:
            reason = f"profile {profile.name} allows {frames_of(most)} per step"
        elif num_tokens > profile.max_step_tokens:
            limit = profile.max_step_tokens
            reason = f"{num_tokens} tokens, profile {profile.name} allows {limit} per step"
        elif num_tokens >= capacity.dense:
            reason = f"{num_tokens} tokens do not fit in the window of {capacity.dense}"
        else:
            counts.append(count)
            continue
        left_out.append(LeftOut(f"step, {frames_of(count)}", reason))
    if not counts:
        raise ConfigError(
            f"a step of one frame is not possible: {left_out[0].reason}; take another --profile or "
            "a larger --window"
        )
    return counts, left_out


def fills(capacity: Rows, longest: Rows) -> list[Rows]:
    """The fills of the window at which steps are measured: a small one, and the full window.

    Args:
        capacity: rows of the cache.
        longest: the most rows that an action appends, which the full window has room for.
    """
    full = capacity.dense - longest.dense
    small = min(SMALL_FILL_TOKENS, capacity.dense // 4)
    return [
        Rows(dense, max(1, min(capacity.mod * dense // capacity.dense, capacity.mod - longest.mod)))
        for dense in sorted({small, max(full, 1)})
        if dense <= max(full, 1)
    ]


class BenchRun:
    """The cases of all rows, in sections whose cases take turns."""

    def __init__(
        self,
        bundle: Bundle,
        profile: Profile,
        capacity: Rows,
        model: LoadedModel,
        counts: Sequence[int],
        state: StreamState,
    ) -> None:
        """The cases of a new stream.

        Args:
            bundle: that is measured.
            profile: its profile.
            capacity: rows of the cache.
            model: the loaded bundle.
            counts: frames of the steps.
            state: a stream of `model`.
        """
        self._bundle, self._profile, self._model = bundle, profile, model
        self._counts = list(counts)
        layers = layer_weight_bytes(bundle)
        self._stream = self._prepared(state, bundle.config, capacity, sum(layers))
        longest = (self._stream.frame_rows(counts[-1]), self._stream.reply_rows())
        self._fills = fills(capacity, Rows(*map(max, *longest)))
        self._sections = [
            self._stream.cases_without_past(),
            *([*self._compared(self._stream, past)] for past in self._fills),
        ]
        self._sections[-1].append(self._stream.roll_case())
        self._full: dict[tuple[str, int | None], Case] = {}
        self._counted: dict[tuple[str, int | None], float] = {}
        self._device_calls: dict[tuple[str, int | None], DeviceCalls] = {}
        self._timed: list[tuple[Case, Timer, Timer | None]] = []

    @property
    def small_fill(self) -> int:
        """Tokens of the first fill."""
        return self._fills[0].dense

    def warm_up(self) -> None:
        """Run every case once; on a GPU until CUDA graphs of all steps are captured."""
        for section in self._sections:
            for case in section:
                self._warm_up(case)
                if (driver := self._model.driver) is not None:
                    before = replace(driver.calls)
                    case.action()
                    self._device_calls[case.name, case.num_past] = driver.calls.since(before)

    def add_full_computation(self, release: ExitStack) -> str | None:
        """Add full computation to the rows; returns the reason if it cannot be measured.

        Args:
            release: closes its stream.
        """
        try:
            model = full_computation_model(self._model, self._bundle.config, self._stream.capacity)
            if isinstance(model, str):
                return model
            with ExitStack() as opened:
                state = opened.enter_context(model.open_stream())
                full = self._full_cases(state)
                for case in full.values():
                    self._warm_up(case)
                release.enter_context(opened.pop_all())
        except OUT_OF_MEMORY as exc:  # it has a cache of its own
            return str(exc)
        self._full = full
        self._counted = self._counted_ratios()
        return None

    def _full_cases(self, state: StreamState) -> dict[tuple[str, int | None], Case]:
        """The cases of full computation on its stream, by name and past."""
        layers, mod_layers = layer_weight_bytes(self._bundle), self._bundle.config.mod_layers
        dense = [size for index, size in enumerate(layers) if index not in mod_layers]
        num_bytes = sum(islice(cycle(dense), len(layers)))
        capacity = Rows(self._stream.capacity.dense, self._stream.capacity.dense)
        config = full_computation(self._bundle.config)
        stream = self._prepared(state, config, capacity, num_bytes)
        return {
            (case.name, case.num_past): case
            for past in self._fills
            for case in self._compared(stream, Rows(past.dense, past.dense))
        }

    def _counted_ratios(self) -> dict[tuple[str, int | None], float]:
        """FLOPs of every step by those of full computation, by name and past."""
        config = full_computation(self._bundle.config)
        ratios: dict[tuple[str, int | None], float] = {}
        for past in self._fills:
            every = Rows(past.dense, past.dense)
            for name, added in self._stream.step_rows(self._counts).items():
                ours = step_cost(self._bundle.config, added, past).flops
                theirs = step_cost(config, Rows(added.dense, added.dense), every).flops
                ratios[name, past.dense] = ours / theirs
        return ratios

    def time_all(self, seconds: float, on_step: OnStep) -> None:
        """Time all cases; the sections share the seconds evenly."""
        share = seconds / len(self._sections)
        for number, section in enumerate(self._sections):

            def show(name: str, done: float, _total: float, number: int = number) -> None:
                on_step(name, number * share + done, seconds)

            timed = [(case, self._timer(case), self._full_timer(case)) for case in section]
            timers = [timer for _, *pair in timed for timer in pair if timer is not None]
            take_turns(timers, share, show)
            self._timed += timed

    def rows(self, ceilings: Ceilings | None) -> list[Row]:
        """The rows of all timed cases, in order; `ceilings` are the processor's, if known."""
        return [self._row(*each, ceilings) for each in self._timed]

    def rolling(self, rows: Sequence[Row]) -> Rolling:
        """What rolls cost a whole frame at the full window, from the rows of `rows`."""
        full = self._fills[-1].dense
        found = {row.name: row.timing.p50_ms for row in rows if row.num_past in (None, full)}
        roll_ms = next(row.timing.p50_ms for row in rows if row.name == ROLL)
        every = self._stream.roll_rows().dense / self._bundle.config.frame_stride
        return Rolling(every, roll_ms / every / found[WHOLE_FRAME])

    def _warm_up(self, case: Case) -> None:
        for _ in range(1 if self._model.driver is None else RUNS_TO_CAPTURE):
            case.action()

    def _prepared(
        self, state: StreamState, config: ModelConfig, capacity: Rows, layer_bytes: int
    ) -> BenchStream:
        return BenchStream(
            state,
            config,
            self._bundle.tokenizer,
            self._profile,
            capacity,
            BundleWork(self._bundle, config, layer_bytes),
            self._counts[-1],
        )

    def _compared(self, stream: BenchStream, past: Rows) -> list[Case]:
        """The cases at a fill of the window, which full computation has too."""
        return [*stream.step_cases(past, self._counts), *stream.whole_cases(past)]

    def _timer(self, case: Case) -> Timer:
        return Timer(case.name, case.action, lambda: self._model.graph_seconds)

    def _full_timer(self, case: Case) -> Timer | None:
        full = self._full.get((case.name, case.num_past))
        if full is None:
            return None
        return Timer(f"{case.name}, full computation", full.action, lambda: None)

    def _row(self, case: Case, timer: Timer, full: Timer | None, ceilings: Ceilings | None) -> Row:
        beside_full = None
        if full is not None:
            rounds = zip(timer.round_medians_ms, full.round_medians_ms, strict=True)
            beside_full = BesideFull(
                p50_ms=full.timing().p50_ms,
                ratio=median(ours / theirs for ours, theirs in rounds),
                counted=self._counted.get((case.name, case.num_past)),
            )
        return Row(
            name=case.name,
            num_past=case.num_past,
            per_run=case.per_run,
            unit=case.unit,
            timing=timer.timing(),
            least_ms=ceilings.least_ms(case.work) if ceilings and case.work else None,
            beside_full=beside_full,
            device_calls=self._device_calls.get((case.name, case.num_past)),
        )


def _ceilings(model: LoadedModel, cache_bytes: int) -> Ceilings | str:
    """The rates of the processor that the model runs on, or why they cannot be measured.

    Args:
        model: that is measured.
        cache_bytes: of the CPU.
    """
    try:
        if model.driver is not None:
            return measure_gpu_ceilings(model.driver)
        return measure_ceilings(num_threads(), cache_bytes)
    except OUT_OF_MEMORY as exc:
        return str(exc)


def _window(config: ModelConfig, plan: KvPlan, dtype: str) -> Window:
    every = Rows(plan.capacity.dense, plan.capacity.dense)
    return Window(
        num_tokens=plan.capacity.dense,
        num_mod_rows=plan.capacity.mod,
        num_seconds=plan.num_seconds,
        kv_bytes=plan.size_bytes,
        full_kv_bytes=cache_bytes(full_computation(config), every, dtype),
    )
