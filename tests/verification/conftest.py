"""Fixtures of the tests of `mod-edge verify`."""

import pytest

from mod_edge.verification import torch_reference


@pytest.fixture
def recorded(monkeypatch, recorded_stream):
    """Verifying uses the stream that was recorded once, instead of recording it again (3 s)."""
    _, recorder, trace = recorded_stream
    monkeypatch.setattr(
        torch_reference, "record_stream", lambda *_args, **_kwargs: (recorder, trace)
    )
