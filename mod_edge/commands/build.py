"""`mod-edge build`."""

from typing import TYPE_CHECKING, Annotated

import typer

from mod_edge.commands.arguments import DEFAULT_BUNDLE, BundleArgument, JsonOption
from mod_edge.commands.console import (
    out,
    print_json,
    print_warning,
    printable,
    progress,
    reports_errors,
    si,
)
from mod_edge.native.gpu import dotted

if TYPE_CHECKING:
    from mod_edge.export.engines import BuildReport


@reports_errors
def build(
    profile: Annotated[str, typer.Option(help="Device profile: name or TOML file.")],
    bundle: BundleArgument = DEFAULT_BUNDLE,
    compute_capability: Annotated[
        str | None,
        typer.Option(
            help="Compute capability of the GPU to build for, such as 8.9; default: this machine's "
            "GPU, or the profile's."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Rebuild up-to-date engines too.")] = False,
    json: JsonOption = False,
) -> None:
    """Build TensorRT engines for a bundle; up-to-date engines are skipped."""
    from mod_edge.bundle.bundle import open_bundle
    from mod_edge.export.engines import build_engines
    from mod_edge.profiles import load_profile

    settings = load_profile(profile)
    with progress("build") as show:
        report = build_engines(
            open_bundle(bundle, hash_all=True),
            settings,
            compute_capability=compute_capability,
            force=force,
            on_step=show,
        )
    if json:
        print_json(report.to_json())
    else:
        print_build(report)


def print_build(report: "BuildReport") -> None:
    """Print how many engines were built, where and for which GPU; warnings go to stderr."""
    for graph in report.graphs:
        for warning in graph.warnings:
            print_warning(f"{graph.name}: {warning}")
    out.print(
        printable(
            f"{report.num_built} built, {report.num_fresh} up to date in {report.seconds:.1f} s: "
            f"{report.folder}, {si(report.size_bytes, 'B')} for compute capability "
            f"{dotted(report.settings.compute_capability)} by {report.compiler}, "
            f"peak memory {si(report.peak_memory_bytes, 'B')}"
        )
    )
