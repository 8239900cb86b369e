"""`mod-edge targets` on the screen."""

from mod_edge.console import out, printable
from mod_edge.installed import describe_targets
from mod_edge.targets import DTYPES

HEADER = ("target", "runs on", "dialect", "opset", *DTYPES, "found here")


def print_targets() -> None:
    """Print one row a target: where it runs, how its graphs are made, what it takes."""
    rows = [HEADER] + [
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        # in plain lines: a table of rich's would be cut to the terminal's width
        out.print("  ".join(cells).rstrip(), style="bold" if number == 0 else None)
