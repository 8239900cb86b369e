"""What a checkpoint is exported for: target, precision and cache rows, from a profile and flags."""

from dataclasses import replace
from importlib.util import find_spec

from mod_edge.bundle.shape_ranges import optimization_profiles, step_limits
from mod_edge.errors import BackendError, ConfigError
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.native.installed import installed_targets
from mod_edge.plan.kv_budget import plan_window
from mod_edge.plan.kv_window import NO_ROWS
from mod_edge.plan.protocol import text_minimum
from mod_edge.plan.signature import bundle_signatures
from mod_edge.plan.targets import TARGETS, Lowering, target_named
from mod_edge.profiles import Profile


def choose_lowering(
    checkpoint: Checkpoint,
    profile: Profile,
    *,
    target: str | None = None,
    precision: str | None = None,
    window: str | None = None,
) -> Lowering:
    """The lowering that `profile` means for `checkpoint`, where the other arguments do not say.

    Args:
        checkpoint: an open checkpoint.
        profile: of the device that the bundle is for.
        target: see `choose_target`.
        precision: instead of the profile's.
        window: instead of the profile's; `in_place` graphs have it baked in, others take none.

    Raises:
        ConfigError: an unknown target, one that takes no such precision, a window that is too
            small, or steps of the profile that would fit in none of its engines.
    """
    chosen = TARGETS[choose_target(profile, target)]
    is_baked = chosen.dialect == "in_place"
    if window is not None and not is_baked:
        raise ConfigError(
            f"target {chosen.name} has no window in its graphs; leave --window out here: run takes "
            "it, and engines are compiled for the profile's"
        )
    # The pair of target and precision is judged before a window is planned for it.
    lowering = Lowering(chosen.name, precision or profile.precision, NO_ROWS if is_baked else None)
    if not chosen.has_device_cache:
        return lowering
    config = checkpoint.config
    least_text = text_minimum(config.stream_config, checkpoint.tokenizer, profile.max_new_tokens)
    plan = plan_window(config, window or profile.window, least_text, dtype=lowering.dtype)
    if is_baked:
        lowering = replace(lowering, capacity=plan.capacity)
    if chosen.compiler:  # what `build` would refuse is not worth exporting
        for signature in bundle_signatures(config, lowering):
            optimization_profiles(signature, config, step_limits(profile, plan.capacity))
    return lowering


def choose_target(profile: Profile, target: str | None = None) -> str:
    """`target` if the profile lists it; else its only one, else its best that is installed here.

    Raises:
        ConfigError: the profile does not list `target`, or nothing here decides.
    """
    listed = ", ".join(profile.targets)
    if target is not None:
        if target_named(target).name not in profile.targets:
            raise ConfigError(
                f"profile {profile.name!r} is for devices with {listed}, not for target "
                f"{target!r}; take one of these, or another --profile"
            )
        return target
    if len(profile.targets) == 1:
        return profile.targets[0]
    found = installed_targets()
    for name in profile.targets:
        if name in found:
            return name
    here = ", ".join(f"{package} for {name}" for name, package in found.items()) or "nothing"
    raise ConfigError(
        f"profile {profile.name!r} is for devices with {listed}, and none of them is installed "
        f"here ({here}); say what the device has with --target (mod-edge targets explains them)"
    )


def require_compiler(lowering: Lowering) -> None:
    """Refuse to build engines that nothing here could compile, before the graphs are made.

    Raises:
        ConfigError: ONNX Runtime runs the target's graphs as they are.
        BackendError: the target's compiler is not installed here.
    """
    compiler = TARGETS[lowering.target].compiler
    if not compiler:
        raise ConfigError(
            f"target {lowering.target} has no engines: ONNX Runtime runs its graphs; leave --build "
            "out"
        )
    if find_spec(compiler) is None:
        raise BackendError(
            f"engines for target {lowering.target} are compiled with {compiler}, not installed "
            "here; export without --build and build on the device: mod-edge build BUNDLE"
        )


def summary(lowering: Lowering) -> str:
    """Target, what serves it here, precision and window, as one line."""
    here = installed_targets().get(lowering.target)
    line = (
        f"target {lowering.target} ({here or 'not installed'} here), precision {lowering.precision}"
    )
    if lowering.capacity is None:
        return line
    rows = lowering.capacity
    return f"{line}, window {rows.dense} tokens ({rows.mod} rows in MoD layers)"
