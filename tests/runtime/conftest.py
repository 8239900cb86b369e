"""Fixtures of the runtime's tests."""

from functools import cache

import pytest

from tests.runtime.stand_in_model import linked_copy, stand_in_for


@pytest.fixture(scope="session")
def stand_in_bundle(bundle_for, tmp_path_factory):
    """`stand_in_bundle(target, precision)`: a bundle that can get engines of the stand-in."""
    folder = tmp_path_factory.mktemp("stand-in")

    @cache
    def make(target, precision):
        return linked_copy(bundle_for(target, precision), folder / f"{target}-{precision}")

    return make


@pytest.fixture
def make_machine(stand_in_bundle):
    """`make_machine(target, precision)`: a `StandIn` with engines, closed after the test."""
    made = []

    def make(target, precision):
        machine = stand_in_for(stand_in_bundle(target, precision))
        machine.build()
        made.append(machine)
        return machine

    yield make
    for machine in made:
        machine.close()
