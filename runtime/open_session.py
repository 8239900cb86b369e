"""Open a bundle for one stream or several: plan the window, choose the backend."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mod_edge.bundle.bundle import Bundle, open_bundle
from mod_edge.errors import ConfigError
from mod_edge.plan.kv_budget import KvPlan, rows_of_frames
from mod_edge.plan.sampling import GREEDY, Sampling
from mod_edge.profiles import Profile
from mod_edge.runtime.backends import BackendChoice, load_model
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.loaded_model import StreamLimits
from mod_edge.runtime.session import Session
from mod_edge.runtime.streams import Streams
from mod_edge.runtime.text_session import TextSession

AnySession = TypeVar("AnySession", Session, TextSession)


def open_session(
    bundle: str | Path | Bundle,
    *,
    backend: str = "auto",
    device: str = "auto",
    checkpoint: str | Path | None = None,
    profile: str | Path | Profile | None = None,
    window: str | None = None,
    kv_budget_mib: float | None = None,
    threshold: float | None = None,
    max_new_tokens: int | None = None,
    frames_per_step: int | None = None,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
) -> Session:
    """A session on a bundle; use it as a context manager.

    Args:
        bundle: the folder that `mod-edge export` made, or a `Bundle`.
        backend: `tensorrt`, `onnx`, `torch` (the reference, needs `checkpoint`), or `auto`, see
            `backends.load_model`.
        device: where ONNX Runtime computes, `cpu` or `cuda`; `auto` follows the bundle's target.
        checkpoint: the checkpoint that the bundle was made from, for `torch` only.
        profile: name, TOML path or `Profile` with the defaults for the arguments below; None takes
            the bundle's, see `Bundle.profile`.
        window: seconds of video ("120s") or stream tokens ("4096") to remember.
        kv_budget_mib: MiB for all keys and values; alternative to `window`.
        threshold: see `Protocol`; None takes the checkpoint's.
        max_new_tokens: longest reply.
        frames_per_step: see `SessionOptions`.
        sampling: how the tokens of replies are chosen.
        stop: texts at which a reply ends too; they are not part of it.

    Raises:
        BundleError: the bundle is missing, damaged or partial.
        ConfigError: settings contradict each other, or the window is too small.
        BackendError: the backend cannot run here.
        CacheError: there is not enough memory for the window.
    """
    choice = BackendChoice(backend, device, None if checkpoint is None else Path(checkpoint))
    bundle, defaults = _opened_bundle(bundle, profile)
    options = _video_options(bundle, defaults, threshold, max_new_tokens, frames_per_step)
    options = replace(options, sampling=sampling, stop=tuple(stop))
    plan = bundle.plan(
        defaults.window, options.max_new_tokens, window=window, kv_budget_mib=kv_budget_mib
    )
    return _opened(Session, bundle, plan, options, choice)


def open_streams(
    bundle: str | Path | Bundle,
    *,
    max_streams: int,
    backend: str = "auto",
    device: str = "auto",
    checkpoint: str | Path | None = None,
    profile: str | Path | Profile | None = None,
    window: str | None = None,
    kv_budget_mib: float | None = None,
    threshold: float | None = None,
    max_new_tokens: int | None = None,
    frames_per_step: int | None = None,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
) -> Streams:
    """Several streams on one bundle, loaded once; use it as a context manager.

    One call of the vision graph takes a step's frames of as many streams as fit in the profile's
    `frames_per_step.max`, at most `max_streams`.

    Args:
        bundle: see `open_session`, also for the other arguments and errors.
        max_streams: streams that may run at one time.
        backend: see `open_session`.
        device: see `open_session`.
        checkpoint: see `open_session`.
        profile: see `open_session`.
        window: of each stream.
        kv_budget_mib: MiB for the keys and values of each stream.
        threshold: of each stream.
        max_new_tokens: of each stream.
        frames_per_step: of each stream.
        sampling: of each stream, with the same seed.
        stop: of each stream.
    """
    if max_streams < 1:
        raise ConfigError(f"max_streams={max_streams}, wanted at least 1")
    choice = BackendChoice(backend, device, None if checkpoint is None else Path(checkpoint))
    bundle, defaults = _opened_bundle(bundle, profile)
    options = _video_options(bundle, defaults, threshold, max_new_tokens, frames_per_step)
    options = replace(options, sampling=sampling, stop=tuple(stop))
    plan = bundle.plan(
        defaults.window, options.max_new_tokens, window=window, kv_budget_mib=kv_budget_mib
    )
    frames = options.frames_per_step
    streams_per_encode = max(1, min(max_streams, defaults.frames_per_step.max // frames))
    limits = StreamLimits(
        plan.capacity, options.max_step_tokens, frames, streams_per_encode * frames
    )
    model, reason = load_model(bundle, limits, choice)
    return Streams(
        model,
        bundle.config,
        bundle.tokenizer,
        plan,
        options,
        max_streams=max_streams,
        frames_per_encode=limits.frames_per_encode,
        backend=f"{model.name}: {reason}",
    )


def open_text_session(
    bundle: str | Path | Bundle,
    *,
    backend: str = "auto",
    device: str = "auto",
    checkpoint: str | Path | None = None,
    profile: str | Path | Profile | None = None,
    window: str | None = None,
    kv_budget_mib: float | None = None,
    max_new_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
) -> TextSession:
    """A session for text alone on a bundle; use it as a context manager.

    The arguments and errors are those of `open_session`. A window in tokens is tokens of text; a
    window in seconds has the memory that it would have for video.
    """
    choice = BackendChoice(backend, device, None if checkpoint is None else Path(checkpoint))
    bundle, defaults = _opened_bundle(bundle, profile)
    frames = defaults.frames_per_step.min
    options = _options(bundle, defaults, None, max_new_tokens, frames)
    options = replace(options, sampling=sampling, stop=tuple(stop))
    plan = bundle.text_plan(
        defaults.window, options.max_new_tokens, window=window, kv_budget_mib=kv_budget_mib
    )
    return _opened(TextSession, bundle, plan, options, choice)


def _opened_bundle(
    bundle: str | Path | Bundle, profile: str | Path | Profile | None
) -> tuple[Bundle, Profile]:
    """A whole bundle, opened if it is a folder, and the profile with its defaults."""
    if not isinstance(bundle, Bundle):
        bundle = open_bundle(bundle)
    bundle.require_whole()
    return bundle, profile if isinstance(profile, Profile) else bundle.profile(profile)


def _video_options(
    bundle: Bundle,
    defaults: Profile,
    threshold: float | None,
    max_new_tokens: int | None,
    frames_per_step: int | None,
) -> SessionOptions:
    """Options whose frames of one step fit in the profile's longest step."""
    frames = defaults.frames_per_step.opt if frames_per_step is None else frames_per_step
    options = _options(bundle, defaults, threshold, max_new_tokens, frames)
    least = rows_of_frames(bundle.config, options.frames_per_step, num_before=1).dense
    if options.max_step_tokens < least:
        raise ConfigError(
            f"frames_per_step={options.frames_per_step} takes {least} tokens per step, profile "
            f"{defaults.name!r} has max_step_tokens={options.max_step_tokens}; "
            "lower --frames-per-step"
        )
    return options


def _options(
    bundle: Bundle,
    defaults: Profile,
    threshold: float | None,
    max_new_tokens: int | None,
    frames_per_step: int,
) -> SessionOptions:
    if threshold is None:
        threshold = bundle.config.stream_config.frame_token_interval_threshold
    return SessionOptions(
        threshold=threshold,
        max_new_tokens=defaults.max_new_tokens if max_new_tokens is None else max_new_tokens,
        frames_per_step=frames_per_step,
        max_step_tokens=defaults.max_step_tokens,
        evict_fraction=defaults.evict_fraction,
    )


def _opened(
    kind: type[AnySession],
    bundle: Bundle,
    plan: KvPlan,
    options: SessionOptions,
    choice: BackendChoice,
) -> AnySession:
    limits = StreamLimits(plan.capacity, options.max_step_tokens, options.frames_per_step)
    model, reason = load_model(bundle, limits, choice)
    with ExitStack() as release:
        release.callback(model.close)
        state = release.enter_context(model.open_stream())
        session = kind(
            state,
            bundle.config,
            bundle.tokenizer,
            plan,
            options,
            backend=f"{model.name}: {reason}",
            model=model,
        )
        release.pop_all()
    return session
