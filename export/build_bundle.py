"""`mod-edge build`: the engines of a bundle, for the window that a run with the profile takes."""

from pathlib import Path

from mod_edge.bundle.manifest import CONFIG_FILE, TOKENIZER_FILE, read_manifest
from mod_edge.config import read_config
from mod_edge.export.engines import BuildReport, OnStep, build_engines
from mod_edge.plan.kv_budget import plan_window
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.protocol import text_minimum
from mod_edge.plan.targets import TARGETS
from mod_edge.plan.tokenizer import read_tokenizer
from mod_edge.profiles import Profile


def build_bundle(
    folder: Path,
    profile: Profile,
    *,
    compute_capability: str | None = None,
    force: bool = False,
    on_step: OnStep,
) -> BuildReport:
    """Compile the engines of the bundle at `folder` that are not fresh; all as `build_engines`."""
    return build_engines(
        folder,
        profile,
        capacity=_window_rows(folder, profile),
        compute_capability=compute_capability,
        force=force,
        on_step=on_step,
    )


def _window_rows(folder: Path, profile: Profile) -> Rows | None:
    """Rows of the profile's window, for `delta` graphs; None for those that have theirs in them."""
    lowering = read_manifest(folder).lowering
    if lowering.capacity is not None or not TARGETS[lowering.target].compiler:
        return None
    config = read_config(folder / CONFIG_FILE)
    tokenizer = read_tokenizer(folder / TOKENIZER_FILE, config)
    least_text = text_minimum(config.stream_config, tokenizer, profile.max_new_tokens)
    return plan_window(config, profile.window, least_text, dtype=lowering.dtype).capacity
