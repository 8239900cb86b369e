"""Engines that fit are used; all others are an error with the difference and the build command."""

import os
import re
from dataclasses import replace

import pytest

from mod_edge.bundle.engine_manifest import write_engine_manifest
from mod_edge.bundle.shape_ranges import StepLimits
from mod_edge.errors import BackendError
from mod_edge.plan.kv_window import Rows
from mod_edge.runtime.device.engine_choice import find_engines
from tests.runtime.stand_in_model import linked_copy, stand_in_for

CAPACITY = Rows(260, 148)


@pytest.fixture
def machine(bundle_for, tmp_path):
    """A machine with its own bundle, without engines."""
    return stand_in_for(linked_copy(bundle_for("rtx", "fp16"), tmp_path / "bundle"))


def find(machine, compute_capability="89", **limits):
    return find_engines(
        machine.bundle,
        replace(machine.limits, **limits),
        tensorrt=machine.tensorrt,
        compute_capability=compute_capability,
    )


def refusal(machine, *arguments, **limits):
    with pytest.raises(BackendError) as caught:
        find(machine, *arguments, **limits)
    return str(caught.value)


def command(machine, compute_capability="8.9"):
    return (
        f"mod-edge build {machine.bundle.folder} --profile rtx-ada "
        f"--compute-capability {compute_capability}"
    )


def test_engines_that_fit_are_used(machine):
    built = machine.build()
    assert find(machine) == built


def test_the_last_built_of_several_fitting_sets_is_used(machine):
    folders = []
    for number, level in enumerate((1, 5, 3)):
        built = machine.build(builder_optimization_level=level)
        manifest = machine.bundle.folder / built.settings.folder / "manifest.json"
        os.utime(manifest, (1000, 1000 + number % 2))
        folders.append(built)
    assert find(machine) == folders[1]


def test_a_bundle_without_engines_is_an_error_with_the_build_command(machine):
    assert refusal(machine) == (
        f"bundle {machine.bundle.folder} has no engines; build them with: "
        f"mod-edge build {machine.bundle.folder} --profile rtx-ada"
    )
    assert "--profile rtx-blackwell" in refusal(machine, "120")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (
            {"version": "1.6.0.1"},
            "are for TensorRT-RTX 1.6.0.1, here is TensorRT-RTX 1.7.1.116",
        ),
        (
            {"compiler": "tensorrt", "version": "10.16.1"},
            "are for TensorRT 10.16.1, here is TensorRT-RTX 1.7.1.116",
        ),
        (
            {"compute_capability": "86"},
            "are for compute capability 8.6, here is compute capability 8.9",
        ),
        ({"precision": "bf16"}, "are for precision bf16, here is precision fp16"),
        ({"target": "tensorrt"}, "are for target tensorrt, here is target rtx"),
    ],
)
def test_engines_for_something_else_are_an_error_that_says_what_differs(
    machine, changes, difference
):
    built = machine.build(**changes)
    assert refusal(machine) == (
        f"no engines of bundle {machine.bundle.folder} fit: {built.settings.folder} {difference}; "
        f"build them with: {command(machine)}"
    )


def test_an_engine_from_another_export_is_an_error(machine):
    built = machine.build()
    stale = {**built.engines, "head": replace(built.engines["head"], key="0" * 64)}
    write_engine_manifest(replace(built, engines=stale), machine.bundle.folder)
    message = refusal(machine)
    assert "are incomplete: head was built from another export of the graph" in message
    assert message.endswith(command(machine))


def test_all_missing_and_damaged_engines_are_named_at_once(machine):
    built = machine.build()
    folder = machine.bundle.folder / built.settings.folder
    (folder / "vision.engine").unlink()
    data = (folder / "layer-03.engine").read_bytes()
    (folder / "layer-03.engine").write_bytes(data[:-1] + b"!")
    engines = {name: record for name, record in built.engines.items() if name != "layer-05"}
    write_engine_manifest(replace(built, engines=engines), machine.bundle.folder)
    message = refusal(machine)
    found = re.findall(r"incomplete: (\S+) (was not built|is \w+)", message)
    assert found == [
        ("vision", "is missing"),
        ("layer-03", "is damaged"),
        ("layer-05", "was not built"),
    ]


def test_engines_for_smaller_steps_are_an_error_with_both_numbers(machine):
    machine.build(limits=StepLimits(40, 1, 2, CAPACITY))
    message = refusal(machine)
    assert message.startswith(f"the engines in {machine.bundle.folder} are too small for this run")
    assert "take 40 tokens per step, wanted 64; take 2 frames per step, wanted 3" in message
    assert message.endswith("or rebuild with a larger profile")
    find(machine, max_step_tokens=40, frames_per_step=2)
    few = {"max_step_tokens": 40, "frames_per_step": 1}
    with pytest.raises(BackendError, match="encode 2 frames at once, wanted 4 of all streams"):
        find(machine, **few, frames_of_all_streams=4)
    find(machine, **few, frames_of_all_streams=2)


def test_engines_for_a_smaller_cache_are_an_error(make_machine):
    machine = make_machine("tensorrt-delta", "fp32")
    message = refusal(machine, capacity=Rows(300, 132))
    assert "take a cache of 260 rows (132 in MoD layers), wanted 300 (132)" in message


def test_sets_that_do_not_fit_are_ignored_if_one_fits(machine):
    machine.build(compute_capability="120")
    built = machine.build()
    assert len(machine.bundle.engines) == 2
    assert find(machine) == built
