"""`mod-edge import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mod_edge.commands.arguments import (
    ForceOption,
    JsonOption,
    ThreadsOption,
    refuse_options,
    require_extra,
    use_threads,
)
from mod_edge.commands.console import (
    out,
    print_json,
    print_pairs,
    print_warning,
    printable,
    progress,
    reports_errors,
    si,
)
from mod_edge.config import BASELINES, INSERTIONS, MoDConfig, ModelConfig
from mod_edge.native.package_faults import quiet_imports
from mod_edge.plan.costs import num_parameters
from mod_edge.plan.untrained import untrained_warnings

if TYPE_CHECKING:
    from mod_edge.model.importing.importer import ImportReport

FULL, MOD = "full", "mod"
OF_MOD = ("keep_ratio", "insertion", "routers")


@reports_errors
def import_(
    context: typer.Context,
    llm: Annotated[Path, typer.Option(help="Language model: a Hugging Face folder.")],
    vision: Annotated[Path, typer.Option(help="SigLIP vision tower: a Hugging Face folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Checkpoint folder to create.")],
    connector: Annotated[
        Path | None,
        typer.Option(
            help="Connector (safetensors file); default: the adapter's, or an untrained one."
        ),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="LoRA adapter (peft folder) to merge into the model.")
    ] = None,
    policy: Annotated[
        str, typer.Option(help="full: every layer computes every token; mod: MoD layers.")
    ] = FULL,
    keep_ratio: Annotated[
        float, typer.Option(help="Share of a frame's tokens that a MoD layer computes (0-1).")
    ] = MoDConfig.keep_ratio,
    insertion: Annotated[
        str, typer.Option(help=f"Which layers are MoD layers: {', '.join(INSERTIONS)}.")
    ] = MoDConfig.insertion,
    routers: Annotated[
        Path | None,
        typer.Option(
            help="Routers of the MoD layers (safetensors file); default: the adapter's, or "
            "untrained ones."
        ),
    ] = None,
    template: Annotated[
        str,
        typer.Option(
            help="Chat template: auto (the folder's if it is chatml or llama3, else plain), plain, "
            "chatml, llama3, or a TOML or JSON file."
        ),
    ] = "auto",
    threads: ThreadsOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Make a checkpoint of published weights: a language model and a SigLIP vision tower."""
    if policy not in (FULL, MOD):
        raise typer.BadParameter(f"{policy!r}, wanted {FULL} or {MOD}", param_hint="--policy")
    if policy == FULL:
        refuse_options(context, OF_MOD, "--policy mod")
    if insertion in BASELINES:
        raise typer.BadParameter(
            f"{insertion!r} is a baseline without routers and --keep-ratio, wanted one of "
            f"{', '.join(INSERTIONS)}",
            param_hint="--insertion",
        )
    use_threads(threads)
    require_extra("export")
    with quiet_imports():
        from mod_edge.model.importing.import_plan import ImportSources
        from mod_edge.model.importing.importer import import_checkpoint

    sources = ImportSources(llm, vision, connector, adapter, routers, template)
    mod = MoDConfig(insertion, keep_ratio) if policy == MOD else None
    with progress("import") as show:
        report = import_checkpoint(sources, output, mod=mod, force=force, on_step=show)
    if json:
        print_json(report.to_json())
    else:
        _print_report(report)
    for warning in untrained_warnings(report.config):
        print_warning(warning)


def _print_report(report: "ImportReport") -> None:
    config = report.config
    total = si(num_parameters(config)["total"], "parameters")
    out.print(f"wrote {printable(str(report.folder))}: {total}, {si(report.size_bytes, 'B')}")
    text, vision = config.text_config, config.vision_config
    rows = [
        ("decoder", f"{text.num_hidden_layers} layers of {text.hidden_size}, {config.dtype}"),
        ("routing", _routing(config)),
        ("vision", f"{vision.num_hidden_layers} layers of {vision.hidden_size}"),
        ("frame", f"{config.frame_num_tokens} tokens"),
    ]
    print_pairs([*rows, *(("note", printable(note)) for note in report.notes)])


def _routing(config: ModelConfig) -> str:
    if config.mod_config is None:
        return "none: full computation"
    num_mod, num_layers = len(config.mod_layers), config.text_config.num_hidden_layers
    kept = f"{config.num_kept} of {config.frame_num_tokens} tokens a frame"
    return f"{num_mod} of {num_layers} layers compute {kept} ({config.mod_config.insertion})"
