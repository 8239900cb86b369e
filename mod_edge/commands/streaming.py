"""What `mod-edge run` runs: one stream, several streams on one model, or text alone."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from mod_edge.bundle.bundle import Bundle, open_bundle
from mod_edge.commands.arguments import usage_errors
from mod_edge.commands.console import print_warning
from mod_edge.commands.live_options import policies_of
from mod_edge.commands.recording import recording
from mod_edge.commands.standard_input import standard_input
from mod_edge.commands.stream_view import (
    ViewOptions,
    screen_view,
    screen_views,
    show_stream,
    show_streams,
)
from mod_edge.commands.text_view import show_conversation
from mod_edge.plan.sampling import Sampling
from mod_edge.plan.untrained import untrained_warnings
from mod_edge.profiles import Profile
from mod_edge.runtime.capture.open_source import check_source, open_source
from mod_edge.runtime.capture.source import CapturePolicy, Source, check_pace
from mod_edge.runtime.capture.source_name import ImagePaths, SourceName, stream_names
from mod_edge.runtime.open_session import open_session, open_streams, open_text_session
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session
from mod_edge.runtime.streams import Streams
from mod_edge.runtime.text_session import TextSession


@dataclass(frozen=True)
class ModelOptions:
    """Which bundle to open, and how: `hash_all` as for `open_bundle`, the rest as `open_session`.

    None is the default of the bundle or its profile.
    """

    bundle: Path
    hash_all: bool
    backend: str
    device: str
    checkpoint: Path | None
    profile: str | None
    window: str | None
    kv_budget_mib: float | None
    threshold: float | None
    max_new_tokens: int | None
    frames_per_step: int | None
    sampling: Sampling
    stop: tuple[str, ...]


@dataclass(frozen=True)
class CaptureOptions:
    """What to watch.

    Attributes:
        sources: one or more, each a stream.
        policy: of the live ones; None is the default.
        max_frames: of each stream; None for all.
        image_fps: frames/s of images; None takes each image for one frame.
    """

    sources: tuple[SourceName, ...]
    policy: CapturePolicy | None
    max_frames: int | None
    image_fps: float | None

    @property
    def policies(self) -> list[CapturePolicy | None]:
        """The policy of each source."""
        return policies_of(self.sources, self.policy)

    def check(self) -> None:
        """Check what can be known before a model is loaded.

        Raises:
            typer.BadParameter: an option is not for these sources.
            SourceError: a file is missing or damaged.
        """
        if self.image_fps is not None:
            if not any(isinstance(source, ImagePaths) for source in self.sources):
                raise typer.BadParameter(
                    "only with a folder, a glob or an image", param_hint="--image-fps"
                )
            with usage_errors("--image-fps"):
                check_pace(self.image_fps, None)
        with usage_errors():
            for source, policy in zip(self.sources, self.policies, strict=True):
                check_source(source, policy)


def converse(model: ModelOptions, turns: Sequence[str], view: ViewOptions) -> None:
    """Reply to text alone, turn after turn."""
    bundle = open_bundle(model.bundle, hash_all=model.hash_all)
    with usage_errors(), _text_session(bundle, model) as session:
        show_conversation(session, turns, view)


def stream(
    model: ModelOptions,
    capture: CaptureOptions,
    queries: Sequence[Query],
    view: ViewOptions,
    *,
    events: Path | None,
    reads_stdin: bool,
) -> None:
    """Stream the sources until they end or Ctrl-C.

    Args:
        model: the bundle.
        capture: the sources.
        queries: asked in each stream.
        view: what the screen shows.
        events: path of the event file; None for none.
        reads_stdin: whether --stdin was given.
    """
    capture.check()
    with recording(events, os.environ) as recorders_of:
        bundle = open_bundle(model.bundle, hash_all=model.hash_all)
        for warning in untrained_warnings(bundle.config):
            print_warning(warning)
        requests = standard_input(as_json=view.as_json, is_asked_for=reads_stdin)
        # The file first: it has the event at which a closed pipe of the screen ends the run.
        with usage_errors():
            profile = bundle.profile(model.profile)
            if len(capture.sources) == 1:
                with (
                    _session(bundle, profile, model) as session,
                    _opened(capture, bundle, profile) as sources,
                ):
                    (source,) = sources.values()
                    views = [*recorders_of("", session), screen_view(session, view, requests)]
                    show_stream(session, source, queries, views, requests)
                return
            with (
                _streams(bundle, profile, model, len(capture.sources)) as streams,
                _opened(capture, bundle, profile) as sources,
            ):
                screen_of = screen_views(streams, view, requests)
                show_streams(
                    streams,
                    sources,
                    queries,
                    lambda name, session: [*recorders_of(name, session), screen_of(name, session)],
                    requests,
                )


@contextmanager
def _opened(
    capture: CaptureOptions, bundle: Bundle, profile: Profile
) -> Iterator[dict[str, Source]]:
    """The sources, open, by the names of their streams."""
    with ExitStack() as release:
        sources: dict[str, Source] = {}
        names = stream_names(capture.sources)
        for name, source, policy in zip(names, capture.sources, capture.policies, strict=True):
            frames = open_source(
                source,
                fps=bundle.config.stream_config.frame_fps,
                max_frames=capture.max_frames,
                wanted=profile.camera,
                image_fps=capture.image_fps,
                policy=policy,
            )
            release.push(frames)
            sources[name] = frames
        yield sources


def _session(bundle: Bundle, profile: Profile, model: ModelOptions) -> Session:
    return open_session(
        bundle,
        backend=model.backend,
        device=model.device,
        checkpoint=model.checkpoint,
        profile=profile,
        window=model.window,
        kv_budget_mib=model.kv_budget_mib,
        threshold=model.threshold,
        max_new_tokens=model.max_new_tokens,
        frames_per_step=model.frames_per_step,
        sampling=model.sampling,
        stop=model.stop,
    )


def _streams(bundle: Bundle, profile: Profile, model: ModelOptions, max_streams: int) -> Streams:
    return open_streams(
        bundle,
        max_streams=max_streams,
        backend=model.backend,
        device=model.device,
        checkpoint=model.checkpoint,
        profile=profile,
        window=model.window,
        kv_budget_mib=model.kv_budget_mib,
        threshold=model.threshold,
        max_new_tokens=model.max_new_tokens,
        frames_per_step=model.frames_per_step,
        sampling=model.sampling,
        stop=model.stop,
    )


def _text_session(bundle: Bundle, model: ModelOptions) -> TextSession:
    return open_text_session(
        bundle,
        backend=model.backend,
        device=model.device,
        checkpoint=model.checkpoint,
        profile=model.profile,
        window=model.window,
        kv_budget_mib=model.kv_budget_mib,
        max_new_tokens=model.max_new_tokens,
        sampling=model.sampling,
        stop=model.stop,
    )
