"""`mod-edge bench` on the screen."""

from dataclasses import astuple

from mod_edge.bench.ceilings import Ceilings
from mod_edge.bench.other_load import OtherLoad
from mod_edge.bench.report import BenchReport, Row
from mod_edge.bench.several_streams import StreamsRow
from mod_edge.commands.console import (
    out,
    print_pairs,
    print_table,
    print_warning,
    printable,
    si,
)

COLUMNS = ("", "past", "p50 ms", "p95", "p99", "rate", "outside", "least ms", "reached")
FULL_COLUMNS = ("full ms", "ratio", "counted")
CALL_COLUMNS = (
    *("", "past", "uploads", "copies", "downloads", "waits", "upload waits", "CUDA graphs"),
    "allocations",
)
STREAM_COLUMNS = ("streams", "past", "vision ms", "decoder ms", "frames/s", "ratio", "memory each")
NOTHING = "-"
# Others that kept more of a core busy than this may have made times longer.
QUIET_CORES = 0.1


def print_bench(report: BenchReport) -> None:
    """Print the device and the setup, the table of rows, and what its columns mean."""
    print_pairs([(name, printable(text)) for name, text in _facts(report)])
    out.print()
    has_full = any(row.beside_full for row in report.rows)
    columns = (*COLUMNS, *(FULL_COLUMNS if has_full else ()))
    rows = [(*_cells(row), *(_full_cells(row) if has_full else ())) for row in report.rows]
    print_table(columns, rows)
    out.print()
    if calls := [_call_cells(row) for row in report.rows if row.device_calls]:
        print_table(CALL_COLUMNS, calls)
        out.print()
    if report.streams:
        print_table(STREAM_COLUMNS, [_stream_cells(row) for row in report.streams])
        out.print()
    for note in _notes(report, has_full=has_full):
        out.print(note)
    for left_out in report.left_out:
        out.print(printable(f"not measured: {left_out.what}: {left_out.reason}"))
    for warning in report.warnings:
        print_warning(warning)
    if load := _disturbance(report.other_load):
        print_warning(load)


def _facts(report: BenchReport) -> list[tuple[str, str]]:
    device, window = report.device, report.window
    routing = (
        f", {report.num_mod_layers} of them MoD: {report.num_kept} of {report.frame_num_tokens} "
        "tokens of a frame"
        if report.num_mod_layers
        else ""
    )
    ratio = window.kv_bytes / window.full_kv_bytes
    facts = [
        ("bundle", f"{report.bundle}: {report.numbers}, {report.num_layers} layers{routing}"),
        (
            "device",
            f"{device.name}, {device.num_cores} cores, {device.num_threads} threads; "
            + (" ".join(device.instruction_sets) or "instruction sets unknown"),
        ),
        *_state(report),
        ("backend", report.backend),
        (
            "window",
            f"{window.num_tokens} tokens ({window.num_mod_rows} in MoD layers), "
            f"{window.num_seconds:g} s of video; profile {report.profile}",
        ),
        (
            "KV cache",
            f"{si(window.kv_bytes, 'B')}; with full computation {si(window.full_kv_bytes, 'B')} "
            f"(ratio {ratio:.3f})",
        ),
        ("memory", _memory(report)),
        ("load", f"{report.load_s:.2f} s until the first step can run"),
    ]
    if report.ceilings is not None:
        facts.append(("ceilings", _ceilings(report.ceilings)))
    return [*facts, ("other load", _other_load(report.other_load))]


def _state(report: BenchReport) -> list[tuple[str, str]]:
    """Power mode, clocks and temperatures, where the system reports them."""
    device = report.device
    states = [f"mode {device.power_mode}"] if device.power_mode else []
    states += [f"{name} {now} of {most} MHz" for name, (now, most) in device.clocks_mhz.items()]
    states += [f"{name} {degrees:.0f} °C" for name, degrees in device.temperatures_c.items()]
    return [("power", ", ".join(states))] if states else []


def _memory(report: BenchReport) -> str:
    def size(value: int | None) -> str:
        return "unknown" if value is None else si(value, "B")

    memory, before = report.memory, report.memory_before
    device = report.device_memory_bytes
    return (
        f"anonymous {size(memory.anonymous)} ({size(before.anonymous)} before loading), resident "
        f"{size(memory.resident)}, peak {size(memory.peak)}; "
        + (f"GPU {si(device, 'B')}; " if device is not None else "")
        + f"weights {si(report.weight_bytes, 'B')}"
    )


def _ceilings(ceilings: Ceilings) -> str:
    rates = (
        ("memory", ceilings.bytes_per_s, "B/s"),
        ("fp32 products", ceilings.float_flops_per_s, "FLOP/s"),
        ("int8", ceilings.int8_flops_per_s, "OP/s"),
    )
    known = [f"{name} {si(rate, unit)}" for name, rate, unit in rates if rate is not None]
    return f"{', '.join(known)}; cache {si(ceilings.cache_bytes, 'B')}"


def _other_load(load: OtherLoad) -> str:
    if load.cores is None:
        return "unknown"
    busiest = ", ".join(f"{each.name} {each.cores:.2f}" for each in load.processes)
    average = "" if load.load_average is None else f"; load average before {load.load_average:g}"
    return f"{load.cores:.2f} cores" + (f" ({busiest})" if busiest else "") + average


def _disturbance(load: OtherLoad) -> str:
    if load.cores is None or load.cores < QUIET_CORES:
        return ""
    return (
        f"other processes kept {load.cores:.2f} cores busy meanwhile, which makes times longer; "
        "the ratios were measured in turns"
    )


def _cells(row: Row) -> tuple[str, ...]:
    timing, share = row.timing, row.timing.outside_graphs
    return (
        row.name,
        NOTHING if row.num_past is None else str(row.num_past),
        _ms(timing.p50_ms),
        _ms(timing.p95_ms),
        _ms(timing.p99_ms),
        NOTHING if row.per_s is None else f"{_number(row.per_s)} {row.unit}/s",
        NOTHING if share is None else _percent(share),
        NOTHING if row.least_ms is None else _ms(row.least_ms),
        NOTHING if row.reached is None else f"{100 * row.reached:.0f} %",
    )


def _full_cells(row: Row) -> tuple[str, ...]:
    full = row.beside_full
    if full is None:
        return (NOTHING,) * len(FULL_COLUMNS)
    counted = NOTHING if full.counted is None else f"{full.counted:.3f}"
    return (_ms(full.p50_ms), f"{full.ratio:.3f}", counted)


def _call_cells(row: Row) -> tuple[str, ...]:
    assert row.device_calls is not None
    past = NOTHING if row.num_past is None else str(row.num_past)
    return (row.name, past, *map(str, astuple(row.device_calls)))


def _stream_cells(row: StreamsRow) -> tuple[str, ...]:
    return (
        str(row.num_streams),
        str(row.num_past),
        _ms(row.vision_ms),
        _ms(row.decoder_ms),
        _number(row.fps),
        f"{row.ratio:.3f}",
        NOTHING if row.stream_bytes is None else si(row.stream_bytes, "B"),
    )


def _notes(report: BenchReport, *, has_full: bool) -> list[str]:
    rolling = report.rolling
    on_gpu = any(row.device_calls for row in report.rows)
    if on_gpu:
        notes = [
            "outside: share of the time in which the host did not wait for the GPU",
            "least ms: moving weights, keys and values at the ceiling; reached: its share of p50",
            "the second table counts calls of one run; upload waits: for inputs of the last step "
            "but one, which rarely take time",
        ]
    else:
        notes = [
            "outside: share of the time outside the graphs",
            "least ms: moving the weights, keys and values, or computing the products, at the "
            "ceilings; reached: its share of p50",
        ]
    if has_full:
        notes.append(
            "full ms: full computation of the same size on the same graphs, dense layers in place "
            "of MoD layers, in turns;\n"
            "ratio: this model's time to it, counted: the same of FLOPs as inspect counts them"
        )
    if report.streams:
        notes.append(
            "streams: they take turns on one model, their frames encoded together; ms of a frame, "
            "frames/s of all; ratio: of a frame's time to that of one stream"
        )
    notes.append(
        f"roll: once every {rolling.every_frames:.0f} frames in a full window, "
        f"{_percent(rolling.share, 2)} of a whole frame"
    )
    return notes


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _ms(value: float) -> str:
    return _number(value)


def _number(value: float) -> str:
    """At least three significant digits."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"
