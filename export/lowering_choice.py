"""Target, precision and cache rows of an export, from a profile and command-line flags."""

from dataclasses import replace

from mod_edge.bundle.shape_ranges import optimization_profiles, step_limits
from mod_edge.config import ModelConfig
from mod_edge.errors import BackendError, ConfigError
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.native.installed import installed_targets, is_missing
from mod_edge.plan.costs import num_parameters
from mod_edge.plan.kv_budget import plan_window
from mod_edge.plan.kv_window import NO_ROWS
from mod_edge.plan.protocol import text_minimum
from mod_edge.plan.signature import bundle_signatures
from mod_edge.plan.targets import TARGETS, Lowering, target_named
from mod_edge.plan.weight_forms import AS_DTYPE, INT8
from mod_edge.profiles import Profile

# Decoders with at least this many weights are int8 by default on target cpu: reading the weights
# takes most of a step's time, and int8 reads a quarter.
LARGE_DECODER = 100_000_000


def choose_lowering(
    checkpoint: Checkpoint,
    profile: Profile,
    *,
    target: str | None = None,
    precision: str | None = None,
    weights: str | None = None,
    window: str | None = None,
) -> Lowering:
    """The lowering of `checkpoint` for `profile`; the other arguments override the profile.

    Args:
        checkpoint: an open checkpoint.
        profile: of the device that the bundle is for.
        target: see `choose_target`.
        precision: overrides the profile's.
        weights: a weight format of the target; None takes `default_weights`.
        window: overrides the profile's; only `in_place` graphs have a fixed window.

    Raises:
        ConfigError: an unknown target, a precision or weight format that it does not support, a
            window that is too small or not supported, or steps of the profile that fit in none of
            its engines.
    """
    chosen = TARGETS[choose_target(profile, target)]
    is_baked = chosen.dialect == "in_place"
    if window is not None and not is_baked:
        raise ConfigError(
            f"target {chosen.name} has no fixed window; omit --window here and give it to run "
            "(engines are compiled for the profile's window)"
        )
    # Checks that the target supports the precision, before a window is planned for the two.
    lowering = Lowering(
        chosen.name,
        precision or profile.precision,
        NO_ROWS if is_baked else None,
        weights or default_weights(checkpoint.config, chosen.name),
    )
    if not chosen.has_device_cache:
        return lowering
    config = checkpoint.config
    least_text = text_minimum(config.stream_config, checkpoint.tokenizer, profile.max_new_tokens)
    plan = plan_window(config, window or profile.window, least_text, dtype=lowering.dtype)
    if is_baked:
        lowering = replace(lowering, capacity=plan.capacity)
    if chosen.compiler:  # fails here rather than in `build`, after the export
        for signature in bundle_signatures(config, lowering):
            optimization_profiles(signature, config, step_limits(profile, plan.capacity))
    return lowering


def default_weights(config: ModelConfig, target: str) -> str:
    """The weight format of an export that names none: int8 for a large decoder on a CPU.

    Small models are fast enough as they are, and on a GPU quantized weights are a choice of memory
    over precision.
    """
    is_large = num_parameters(config)["decoder"] >= LARGE_DECODER
    return INT8 if target == "cpu" and is_large else AS_DTYPE


def choose_target(profile: Profile, target: str | None = None) -> str:
    """`target` if given; else the profile's only target, else its best one installed here.

    Raises:
        ConfigError: the profile does not list `target`, or lists several and none is installed.
    """
    listed = ", ".join(profile.targets)
    if target is not None:
        if target_named(target).name not in profile.targets:
            raise ConfigError(
                f"profile {profile.name!r} is for devices with {listed}, not for target "
                f"{target!r}; choose one of these, or another --profile"
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
        f"here ({here}); name the device's target with --target (mod-edge targets describes them)"
    )


def require_compiler(lowering: Lowering) -> None:
    """Check, before anything is exported, that engines for `lowering` can be compiled here.

    Raises:
        ConfigError: the target has no engines: ONNX Runtime runs its graphs.
        BackendError: the target's compiler is not installed here.
    """
    compiler = TARGETS[lowering.target].compiler
    if not compiler:
        raise ConfigError(
            f"target {lowering.target} has no engines: ONNX Runtime runs its graphs; omit --build"
        )
    if is_missing(compiler):
        raise BackendError(
            f"engines for target {lowering.target} are compiled with {compiler}, which is not "
            "installed here; export without --build and build on the device: mod-edge build BUNDLE"
        )


def weights_reason(lowering: Lowering, asked: str | None) -> str:
    """One line: the weight format of an export and why it has this one.

    Args:
        lowering: of the export.
        asked: the argument `weights` of `choose_lowering`.
    """
    name, target = lowering.weight_format, TARGETS[lowering.target]
    if asked is not None:
        return f"weights {name}: chosen with --weights"
    large = f"{LARGE_DECODER // 10**6} million decoder weights"
    if lowering.is_quantized:
        return (
            f"weights {name}: the default for target {target.name} from {large} on; "
            f"--weights {AS_DTYPE} keeps {lowering.precision}"
        )
    default = f"target {target.name}" + (f" below {large}" if target.name == "cpu" else "")
    smaller = " or ".join(each.name for each in target.weight_formats if each.name != AS_DTYPE)
    return (
        f"weights {name} ({lowering.precision}): the default for {default}; "
        f"--weights {smaller} makes them smaller"
    )


def summary(lowering: Lowering) -> str:
    """One line: target, the package that runs it here, precision and window."""
    here = installed_targets().get(lowering.target)
    line = (
        f"target {lowering.target} ({here or 'not installed'} here), precision {lowering.precision}"
    )
    if lowering.capacity is None:
        return line
    rows = lowering.capacity
    return f"{line}, window {rows.dense} tokens ({rows.mod} rows in MoD layers)"
