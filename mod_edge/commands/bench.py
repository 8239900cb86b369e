"""`mod-edge bench`."""

from typing import Annotated

import typer

from mod_edge.commands.arguments import (
    DEFAULT_BUNDLE,
    BundleArgument,
    DeviceOption,
    JsonOption,
    KvBudgetOption,
    OptionalProfileOption,
    ThreadsOption,
    WindowOption,
    use_threads,
)
from mod_edge.commands.console import print_json, progress, reports_errors
from mod_edge.native.package_faults import quiet_imports


@reports_errors
def bench(
    bundle: BundleArgument = DEFAULT_BUNDLE,
    window: WindowOption = None,
    kv_budget: KvBudgetOption = None,
    profile: OptionalProfileOption = None,
    backend: Annotated[str, typer.Option(help="Backend: auto, tensorrt or onnx.")] = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    seconds: Annotated[
        float,
        typer.Option(
            help="Time to spend on measuring; a slow bundle takes longer, for five rounds of every "
            "row."
        ),
    ] = 40.0,
    json: JsonOption = False,
) -> None:
    """Measure every part of a stream, beside full computation and this machine's own limits."""
    use_threads(threads)
    with quiet_imports():
        from mod_edge.bench.bench import BenchOptions, bench_bundle
        from mod_edge.commands.bench_view import print_bench

    options = BenchOptions(backend, device, profile, window, kv_budget, seconds)
    with progress("bench") as show:
        report = bench_bundle(bundle, options, show)
    if json:
        print_json(report.to_json())
    else:
        print_bench(report)
