"""How `mod-edge run` shows what happened to a live source, and what became of its pictures."""

from mod_edge.commands.console import printable
from mod_edge.runtime.capture.live_source import (
    FrozenEvent,
    GapEvent,
    LostEvent,
    SizeEvent,
    UnfrozenEvent,
)
from mod_edge.runtime.events import Event, Summary

SOURCE_EVENTS = (LostEvent, GapEvent, SizeEvent, FrozenEvent, UnfrozenEvent)


def source_line(event: Event) -> tuple[tuple[str, str], str]:
    """The parts of a line about a source, after its time."""
    if isinstance(event, LostEvent):
        return ("lost      ", "yellow"), printable(f"{event.reason}; opening it again")
    if isinstance(event, GapEvent):
        tried = "1 attempt" if event.num_attempts == 1 else f"{event.num_attempts} attempts"
        attempts = f", back after {tried}" if event.num_attempts else ""
        reason = "" if event.num_attempts else f": {event.reason}"
        return ("gap       ", "yellow"), f"{event.gap_s:.1f} s without a picture{attempts}{reason}"
    if isinstance(event, SizeEvent):
        sizes = f"{event.old_width} x {event.old_height} to {event.width} x {event.height} pixels"
        return ("size      ", "yellow"), f"from {sizes}"
    if isinstance(event, FrozenEvent):
        return ("frozen    ", "yellow"), f"the picture has not changed for {event.frozen_s:.1f} s"
    assert isinstance(event, UnfrozenEvent)
    return ("unfrozen  ", "yellow"), f"the picture changes again, after {event.frozen_s:.1f} s"


def age_status(summary: Summary) -> str:
    """The part of the status line about the age of a live source's frames; empty for files."""
    ages = summary.age_ms
    return "" if ages is None else f"  age {ages['p50']:.0f}/{ages['p95']:.0f} ms"


def live_rows(summary: Summary) -> list[tuple[str, str]]:
    """The rows of a summary about a live source; none for files."""
    counts, ages, latencies = summary.capture, summary.age_ms, summary.latency_ms
    if counts is None or ages is None or latencies is None:
        return []
    by_name = {
        "between instants": counts.num_between,
        "dropped": counts.num_dropped,
        "while settling": counts.num_settling,
        "stale": counts.num_stale,
        "not read": counts.num_waiting,
    }
    reasons = ", ".join(f"{count} {name}" for name, count in by_name.items() if count)
    names = f" ({reasons})" if reasons else ""
    taken = f"{counts.num_captured} captured = {counts.num_taken} taken + {counts.num_discarded}"
    return [
        ("pictures", f"{taken} discarded{names}; {counts.num_skipped_reads} reads skipped"),
        ("age", f"{_spread(ages)} ms when the step begins, p50/p95/max"),
        ("latency", f"{_spread(latencies)} ms from capture to event, p50/p95/max"),
    ]


def _spread(times_ms: dict[str, float]) -> str:
    return "/".join(f"{times_ms[name]:.1f}" for name in ("p50", "p95", "max"))
