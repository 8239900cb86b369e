"""`mod-edge verify` on the screen."""

import math

from mod_edge.commands.console import (
    err,
    out,
    print_error,
    print_pairs,
    print_table,
    printable,
)
from mod_edge.verification.graph_check import GraphResult, OutputError
from mod_edge.verification.stream_check import STREAM, StreamResult
from mod_edge.verification.tolerances import StreamQuantizingCost
from mod_edge.verification.verify import VerifyReport

COLUMNS = ("graph", "backend", "worst output", "max", "mean", "99.9 %", "cosine", "allowed")
COST_COLUMNS = ("cost max", "cost mean", "cost cosine")
STYLES = {"ok": "green", "failed": "bold red", "not judged": "yellow", "not run": "yellow"}


def print_report(report: VerifyReport, *, is_verbose: bool) -> None:
    """Print every graph and stream with its errors, then why a check failed or did not run."""
    is_quantized = report.lowering.is_quantized
    cost = "of quantizing: errors against the checkpoint's own weights, not judged"
    print_pairs(
        [
            ("reference", printable(report.reference)),
            ("errors", "relative to the largest value in the reference's row"),
            *([("cost", cost)] if is_quantized else []),
            ("steps", "; ".join(report.steps)),
            ("threads", f"{report.threads}"),
        ]
    )
    results: list[GraphResult | StreamResult] = [*report.graphs, *report.streams]
    styles = ["" if result.status == "ok" else STYLES[result.status] for result in results]
    columns = (*COLUMNS, *(COST_COLUMNS if is_quantized else ()), "")
    rows = [
        (*_cells(result), *(_cost(result) if is_quantized else ()), _verdict(result))
        for result in results
    ]
    print_table(columns, rows, left=(0, 1, 2, len(columns) - 1), styles=styles)
    for stream in report.streams:
        if stream.num_steps:
            out.print(_stream_sentence(stream))
    if is_verbose:
        for graph in report.graphs:
            _print_steps(graph)
    for result in results:
        if result.reason:
            out.print(result.status, style=STYLES[result.status], end=" ")
            out.print(printable(f"{_name(result)}, {result.backend}: {result.reason}"))


def print_failure(report: VerifyReport, reference_options: str) -> None:
    """Report on stderr what failed, and the command that shows the details.

    Args:
        report: one with a failure.
        reference_options: the command's --checkpoint or --golden option, with its value.
    """
    compared = {graph.graph for graph in report.graphs if graph.status != "not run"}
    bad = report.bad_graphs
    if bad:
        verb = "differs" if len(bad) == 1 else "differ"
        what = f"{len(bad)} of {len(compared)} graphs {verb} from the reference, first {bad[0]}"
        hint = f"--graph {bad[0]} --verbose shows its steps and the kept tokens"
    elif any(stream.status == "failed" for stream in report.streams):
        what = "every graph agrees with the reference, but the whole stream does not"
        hint = "--json lists the answers that differ"
    else:
        what, hint = (
            "no graph could be run here, so nothing was compared",
            "--json gives the reasons",
        )
    print_error(what)
    err.print()
    err.print("hint:", style="cyan", end=" ")
    err.print(printable(f"mod-edge verify {report.bundle} {reference_options} {hint}"))


def _name(result: GraphResult | StreamResult) -> str:
    return result.graph if isinstance(result, GraphResult) else STREAM


def _cells(result: GraphResult | StreamResult) -> tuple[str, ...]:
    return (_name(result), result.backend, *_errors(result), _allowed(result))


def _errors(result: GraphResult | StreamResult) -> tuple[str, ...]:
    if isinstance(result, StreamResult):
        if not result.num_steps:
            return ("-",) * 5
        return ("logits", f"{result.largest:.1e}", f"{result.mean:.1e}", "-", "-")
    if result.worst is None:
        return ("-",) * 5
    largest, mean, quantile, cosine = _numbers(result.worst)
    if math.isfinite(result.allowed_mean):
        mean = f"{result.means[result.worst.output]:.1e}"
    return (result.worst.output, largest, mean, quantile, cosine)


def _allowed(result: GraphResult | StreamResult) -> str:
    if not result.allowed:
        return "-"
    if isinstance(result, StreamResult) and result.status == "not judged":
        return "-"
    has_fixed_mean = isinstance(result, StreamResult) and result.cost is None
    if has_fixed_mean or math.isinf(result.allowed_mean):
        return f"{result.allowed:.0e}"
    return f"{result.allowed:.0e}, mean {result.allowed_mean:.0e}"


def _cost(result: GraphResult | StreamResult) -> tuple[str, ...]:
    cost = result.cost
    if cost is None:
        return ("-",) * len(COST_COLUMNS)
    cosine = "-" if isinstance(cost, StreamQuantizingCost) else f"{cost.cosine:.4f}"
    return (f"{cost.largest:.1e}", f"{cost.mean:.1e}", cosine)


def _verdict(result: GraphResult | StreamResult) -> str:
    return "FAILED" if result.status == "failed" else result.status


def _numbers(error: OutputError) -> tuple[str, ...]:
    cosine = f"{error.cosine:.6f}"
    return (f"{error.largest:.1e}", f"{error.mean:.1e}", f"{error.quantile:.1e}", cosine)


def _stream_sentence(stream: StreamResult) -> str:
    others = len(stream.other_answers)
    first = ""
    if others:
        answer = stream.other_answers[0]
        first = (
            f" (first {answer.ours} for {answer.theirs} at step {answer.step}, "
            f"margin {answer.margin:.1e})"
        )
    return (
        f"stream, {stream.backend}: {stream.num_frames} frames, {stream.num_rolls} rolls, "
        f"{stream.num_answers} decisions and tokens, {others} different{first}; "
        f"{stream.num_selections} selections, {stream.num_ties} tokens tied (gap {stream.gap:.1e})"
    )


def _print_steps(result: GraphResult) -> None:
    """Print one line per output of every step, then one per selection."""
    if not result.outputs and not result.selections:
        return
    out.print()
    rows = [(error.step, error.output, *_numbers(error), _place(error)) for error in result.outputs]
    title = f"{result.graph}, {result.backend}"
    columns = (title, "output", "max", "mean", "99.9 %", "cosine", "first bad row")
    styles = [STYLES["failed"] if error.first_bad_row else "" for error in result.outputs]
    print_table(columns, rows, left=(0, 1, 6), styles=styles)
    for selection in result.selections:
        same = "as the reference" if selection.num_other == 0 else f"reference {selection.theirs}"
        gap = f", gap {selection.gap:.1e}" if selection.num_other else ""
        out.print(
            f"{selection.step}: kept {selection.ours}, {same}{gap}; "
            f"margin at the cut {selection.margin:.1e}"
        )


def _place(error: OutputError) -> str:
    if error.first_bad_row is None:
        return ""
    row = ", ".join(map(str, error.first_bad_row))
    return f"[{row}] of {list(error.shape[:-1])}"
