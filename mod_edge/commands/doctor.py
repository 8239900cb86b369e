"""`mod-edge doctor`."""

import typer

from mod_edge.commands.arguments import JsonOption
from mod_edge.commands.console import (
    EXIT_ERROR,
    out,
    print_json,
    print_pairs,
    printable,
    reports_errors,
    si,
)
from mod_edge.doctor.diagnosis import Report, diagnose

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


@reports_errors
def doctor(json: JsonOption = False) -> None:
    """Report what this machine can run, what is missing and how to install it."""
    report = diagnose()
    if json:
        print_json(report.to_dict())
    else:
        print_report(report)
    if not report.is_healthy:
        raise typer.Exit(EXIT_ERROR)


def print_report(report: Report) -> None:
    """Print the facts about the machine, then each finding with its fix."""
    machine = report.machine
    memory = "unknown"
    if machine.memory_total_bytes is not None and machine.memory_available_bytes is not None:
        memory = (
            f"{si(machine.memory_available_bytes, 'B')} available "
            f"of {si(machine.memory_total_bytes, 'B')}"
        )
    disk = "unknown" if machine.disk_free_bytes is None else si(machine.disk_free_bytes, "B")
    quota = "" if machine.cpu_quota is None else f" (CPU quota {machine.cpu_quota:g})"
    rows = [
        ("machine", f"{machine.name}, {machine.architecture}, {machine.system}"),
        ("Jetson", machine.jetson_release or "no"),
        ("cores", f"{machine.num_cores} usable{quota}"),
        ("memory", memory),
        ("disk free here", disk),
        ("video", ", ".join(name for name, is_in in report.video_backends.items() if is_in)),
        (
            "cameras",
            ", ".join(
                f"{camera.number}" + ("" if camera.opens else " (does not open)")
                for camera in report.cameras
            )
            or "none found",
        ),
        ("GPU", report.gpu.name if report.gpu else "none usable"),
        *(
            (f"onnxruntime {provider.name}", "loads" if provider.loads else provider.reason)
            for provider in report.providers
        ),
        ("int8 weights as", report.int8_products or "not usable"),
        *((name, version or "not installed") for name, version in report.versions.items()),
    ]
    print_pairs([(name, printable(value)) for name, value in rows])
    for finding in report.findings:
        out.print(finding.severity, style=STYLES[finding.severity], end=" ")
        out.print(printable(f"{finding.message}; {finding.advice}".removesuffix("; ")))
