"""The plot of the losses."""

import re
import sys

import cv2
import pytest

from mod_edge.errors import BackendError
from mod_edge.native.installed import install_command
from mod_edge.training.plot import plot_losses


def test_both_losses_are_plotted_even_for_a_single_step(tmp_path):
    plot_losses([2.0], [0.5], tmp_path / "loss.png")
    image = cv2.imread(str(tmp_path / "loss.png"))
    assert image.shape == (540, 960, 3)


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("mod_edge.native.package_faults.installed_version", lambda _package: None)
    with pytest.raises(BackendError, match=re.escape(install_command("train"))):
        plot_losses([1.0], [1.0], tmp_path / "loss.png")
