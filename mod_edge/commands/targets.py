"""`mod-edge targets`."""

from mod_edge.commands.arguments import JsonOption
from mod_edge.commands.console import print_json, print_table, printable, reports_errors
from mod_edge.native.installed import describe_targets
from mod_edge.plan.targets import DTYPES

HEADER = ("target", "runs on", "dialect", "opset", *DTYPES, "installed")


@reports_errors
def targets(json: JsonOption = False) -> None:
    """List targets, their precisions and which are installed."""
    if json:
        print_json({"targets": describe_targets()})
    else:
        print_targets()


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
