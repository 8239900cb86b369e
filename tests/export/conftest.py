"""Fixtures of the exporter's tests."""

from dataclasses import replace
from functools import partial

import pytest

from mod_edge.config import MoDConfig
from mod_edge.export import bundle_writer as bundle_module
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import preset_config, write_random_checkpoint
from tests.export.topologies import read_topologies, untraced


@pytest.fixture(scope="session")
def tiny_config():
    return preset_config("tiny")


@pytest.fixture(scope="session")
def tiny_topologies(tiny_bundle, tiny_config):
    """By kind, the traced topology that the tiny bundle's graphs were written from."""
    return read_topologies(tiny_bundle, tiny_config)


@pytest.fixture
def no_tracing(monkeypatch, tiny_topologies):
    """`export_bundle` takes the tiny topologies instead of tracing (6 s each)."""
    monkeypatch.setattr(bundle_module, "trace", partial(untraced, tiny_topologies))


@pytest.fixture
def checkpoint_with(tiny_config, tmp_path):
    """`checkpoint_with(**mod_config)`: a tiny checkpoint with this routing; without any, dense."""

    def make(**mod_config) -> Checkpoint:
        mod = MoDConfig(**mod_config) if mod_config else None
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        config = replace(tiny_config, mod_config=mod)
        write_random_checkpoint(config, folder, seed=0)
        return Checkpoint(folder)

    return make
