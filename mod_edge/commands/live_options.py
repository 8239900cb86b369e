"""The options of `mod-edge run` for cameras and streams, read into a policy."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from mod_edge.commands.arguments import usage_errors

if TYPE_CHECKING:
    from mod_edge.runtime.capture.source import CapturePolicy
    from mod_edge.runtime.capture.source_name import SourceName

KeepOption = Annotated[
    str | None,
    typer.Option(
        help="Which frames wait while the model is busy: newest; queue:N, the newest N at the "
        "model's rate; or every, for files only. Default: newest for live sources, every for files."
    ),
]
ReconnectOption = Annotated[
    str | None,
    typer.Option(
        help="How long to try to reopen a lost camera or stream: 60s, forever or off. With off, "
        "the default, a lost source ends the run with exit code 1."
    ),
]
FrozenAfterOption = Annotated[
    float | None,
    typer.Option(
        help="Warn when a live source has sent identical pictures for SECONDS; default: never.",
        metavar="SECONDS",
    ),
]


def live_policy(
    keep: str | None, reconnect: str | None, frozen_after_s: float | None
) -> "CapturePolicy | None":
    """The policy that the options ask for; None if it is the default.

    Raises:
        typer.BadParameter: an option has no such value.
    """
    from mod_edge.runtime.capture.reconnect import parse_reconnect
    from mod_edge.runtime.capture.source import LIVE, parse_keep

    policy = LIVE
    with usage_errors("--keep"):
        policy = replace(policy, keep=parse_keep(keep)) if keep is not None else policy
    with usage_errors("--reconnect"):
        seconds = parse_reconnect(reconnect) if reconnect is not None else policy.reconnect_s
        policy = replace(policy, reconnect_s=seconds)
    with usage_errors("--frozen-after"):
        after_s = policy.frozen_after_s if frozen_after_s is None else frozen_after_s
        policy = replace(policy, frozen_after_s=after_s)
    # Asked for by name, "newest" is wrong for a file; that a file is not opened again is not.
    return None if keep is None and policy == LIVE else policy


def policies_of(
    sources: Sequence["SourceName"], policy: "CapturePolicy | None"
) -> list["CapturePolicy | None"]:
    """The policy of each source: files beside a live source have none.

    Files alone get it too, to refuse what is only for live sources.
    """
    from mod_edge.runtime.capture.source_name import ImagePaths, VideoPath

    are_files = [isinstance(each, VideoPath | ImagePaths) for each in sources]
    if all(are_files):
        return [policy] * len(sources)
    return [None if is_file else policy for is_file in are_files]
