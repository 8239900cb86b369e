"""What the tests of training share."""

import pytest

from mod_edge.training import train as train_module


@pytest.fixture
def no_picture(monkeypatch):
    """No losses are drawn (0.5 s each)."""
    monkeypatch.setattr(train_module, "plot_losses", lambda *_: None)
