"""`mod-edge eval` on the screen."""

from mod_edge.commands.console import (
    out,
    print_error,
    print_pairs,
    print_table,
    print_warning,
    printable,
)
from mod_edge.evaluation.evaluate import Evaluation
from mod_edge.evaluation.free_running import EventKind, FreeRunning
from mod_edge.evaluation.teacher_forcing import TeacherForced
from mod_edge.evaluation.text_perplexity import TextEvaluation
from mod_edge.evaluation.transcript import Transcript

FORCED_COLUMNS = ("LM-PPL", "TimeDiff", "Fluency", "LM-Correctness")
FREE_COLUMNS = ("precision", "recall", "F1", "moment F1", "error", "|error|", "answers")
KIND_COLUMNS = ("due", "right", "right moment")
TRANSCRIPT_COLUMNS = ("time", "late", "", "asked", "due", "said")
NOTHING = "-"


def print_evaluation(evaluation: Evaluation, *, is_verbose: bool) -> None:
    """Print the setup, the metrics of every row, and the model's captions by kind of event.

    If `is_verbose`, a transcript of every clip comes first: each reply next to the expected one.
    """
    if is_verbose:
        for transcript in evaluation.transcripts:
            _print_transcript(transcript)
    print_pairs([(name, printable(text)) for name, text in _facts(evaluation)])
    thresholds, tolerance_s = evaluation.thresholds, evaluation.tolerance_s
    out.print(f"\nfed the true dialogue, threshold {thresholds.teacher_forced:g}")
    rows = [(row.name, *_forced_cells(row.teacher_forced)) for row in evaluation.rows]
    print_table(("", *FORCED_COLUMNS), rows)
    out.print(f"\nfree-running, threshold {thresholds.free_running:g}, tolerance {tolerance_s:g} s")
    rows = [(row.name, *_free_cells(row.free_running)) for row in evaluation.rows]
    print_table(("", *FREE_COLUMNS), rows)
    first = evaluation.rows[0]
    found = first.free_running
    out.print(
        f"{first.name}: {found.num_right} of {found.num_true} captions right, something said at "
        f"{found.num_moments} of their moments"
    )
    if found.kinds:
        out.print(f"\n{first.name}'s captions by kind of event")
        rows = [(printable(name), *_kind_cells(kind)) for name, kind in found.kinds.items()]
        print_table(("", *KIND_COLUMNS), rows)
    for warning in evaluation.warnings:
        print_warning(warning)


def print_text_evaluation(evaluation: TextEvaluation) -> None:
    """Print the setup and the perplexity of a text."""
    windows = f"{evaluation.num_windows} windows of {evaluation.window_tokens}"
    rows = [
        ("model", evaluation.model),
        ("backend", evaluation.backend),
        ("text", f"{evaluation.text}: {evaluation.num_tokens} tokens in {windows}"),
        ("loss", f"{evaluation.loss:.4f} nats, mean of {evaluation.num_predicted} tokens"),
        ("perplexity", _perplexity(evaluation.perplexity)),
    ]
    print_pairs([(name, printable(text)) for name, text in rows])
    for warning in evaluation.warnings:
        print_warning(warning)


def print_shortfall(evaluation: Evaluation, least_f1: float) -> None:
    """Report on stderr that F1 is below the required value."""
    found = _number(evaluation.rows[0].free_running.f1)
    print_error(f"F1 is {found}, wanted {least_f1:g} or more")


def _print_transcript(transcript: Transcript) -> None:
    rows = [
        (
            f"{entry.time_s:.1f} s",
            "-" if entry.late_s is None else f"{entry.late_s:+.1f}",
            "right" if entry.is_right else "WRONG",
            printable(entry.query or ""),
            printable(entry.due or NOTHING),
            printable(entry.said or NOTHING) if not entry.is_right else '"',
        )
        for entry in transcript.entries
    ]
    captions = [entry for entry in transcript.entries if entry.query is None and entry.due]
    num_right = sum(entry.is_right for entry in captions)
    out.print(f"{printable(transcript.clip)}: {num_right} of {len(captions)} captions right")
    print_table(TRANSCRIPT_COLUMNS, rows, left=(3, 4, 5))
    out.print()


def _facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    clips = (
        f"{evaluation.num_clips} clips, {evaluation.num_frames} frames at {evaluation.fps:g} "
        "frames/s"
    )
    caption = f"say {evaluation.most_frequent!r}" if evaluation.most_frequent else "have no caption"
    return [
        ("model", evaluation.model),
        ("backend", evaluation.backend),
        ("data", f"{evaluation.data}, {evaluation.split}: {clips}"),
        ("baselines", f"{caption}, the most frequent caption of split {evaluation.baseline_from}"),
    ]


def _forced_cells(forced: TeacherForced) -> tuple[str, ...]:
    return (
        _perplexity(forced.lm_ppl),
        _seconds(forced.time_diff_s),
        _number(forced.fluency),
        _number(forced.lm_correctness),
    )


def _free_cells(free: FreeRunning) -> tuple[str, ...]:
    return (
        _number(free.precision),
        _number(free.recall),
        _number(free.f1),
        _number(free.moment_f1),
        _seconds(free.time_error_s, sign="+"),
        _seconds(free.time_error_abs_s),
        f"{free.num_answers_right}/{free.num_answers}" if free.num_answers else NOTHING,
    )


def _kind_cells(kind: EventKind) -> tuple[str, ...]:
    return (
        str(kind.num_true),
        f"{kind.num_right / kind.num_true:.3f}",
        f"{kind.num_moments / kind.num_true:.3f}",
    )


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _perplexity(value: float | None) -> str:
    """Four significant digits, from 1 to many thousands."""
    return NOTHING if value is None else f"{value:#.4g}".rstrip(".")


def _seconds(value: float | None, *, sign: str = "") -> str:
    return NOTHING if value is None else f"{value:{sign}.2f} s"
