"""`mod-edge targets`."""

from dataclasses import asdict

from mod_edge.commands.arguments import JsonOption
from mod_edge.commands.console import out, print_json, print_table, printable, reports_errors
from mod_edge.native.installed import describe_targets
from mod_edge.plan.targets import DTYPES
from mod_edge.plan.weight_table import weight_table

HEADER = ("target", "runs on", "dialect", "opset", *DTYPES, "installed")
WEIGHTS_HEADER = (
    *("target", "weights", "part", "op", "bits", "block", "activations"),
    *(f"bytes {precision}" for precision in DTYPES),
)
WEIGHTS_LEFT = (0, 1, 2, 3, 6)
ABOUT_WEIGHTS = (
    "int8 rounds activations to 8 bits too and multiplies integers; int8-weight-only keeps "
    "activations in the precision.",
    "block: inputs that share a scale; - is one scale per output channel. bytes: of one weight, "
    "its share of a block included.",
    "Embedding tables of quantized bundles are int8 with one scale per row.",
)


@reports_errors
def targets(json: JsonOption = False) -> None:
    """List targets, their precisions and weights, and which are installed."""
    if json:
        weights = [asdict(row) for row in weight_table()]
        print_json({"targets": describe_targets(), "weights": weights})
    else:
        print_targets()
        out.print()
        print_weights()


def print_targets() -> None:
    """Print one row per target: where it runs, its ONNX dialect and opset, and its precisions."""
    rows = [
        (
            row["target"],
            row["runs_on"],
            row["dialect"],
            str(row["opset"]),
            *("yes" if precision in row["precisions"] else "-" for precision in DTYPES),
            printable(row["found"] or "-"),
        )
        for row in describe_targets()
    ]
    print_table(HEADER, rows, left=range(len(HEADER)))


def print_weights() -> None:
    """Print one row per target and weight format, two where decoder layers differ."""
    rows = [
        (
            *(row.target, row.weights, row.part, row.op),
            *(str(number or "-") for number in (row.bits, row.block)),
            row.activations or "-",
            *(_bytes(row.bytes_per_weight.get(precision)) for precision in DTYPES),
        )
        for row in weight_table()
    ]
    print_table(WEIGHTS_HEADER, rows, left=WEIGHTS_LEFT)
    for line in ABOUT_WEIGHTS:
        out.print(line)


def _bytes(size: float | None) -> str:
    return "-" if size is None else f"{size:.3f}"
