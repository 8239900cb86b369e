"""RoPE's frequencies: plain, and with the two scalings."""

import math

import numpy as np
import pytest

from mod_edge.config import RopeScaling
from mod_edge.plan.rope import inverse_frequencies

pytestmark = pytest.mark.numeric

LLAMA3_SCALING = RopeScaling(32.0, 1.0, 4.0, 8192)  # Llama-3.2-1B's


def test_frequencies_are_powers_of_theta(make_config):
    frequencies = inverse_frequencies(make_config().text_config)
    theirs = [500000.0 ** (-2 * pair / 16) for pair in range(8)]
    assert frequencies.dtype == np.float64
    np.testing.assert_allclose(frequencies, theirs, rtol=1e-15)


def test_linear_scaling_divides_every_frequency(make_config):
    plain = inverse_frequencies(make_config().text_config)
    scaling = RopeScaling(2.5, rope_type="linear")
    scaled = inverse_frequencies(make_config(rope_scaling=scaling).text_config)
    np.testing.assert_array_equal(scaled, plain / 2.5)


def test_llama3_scaling_keeps_high_frequencies_divides_low_ones_and_blends_between(make_config):
    plain = inverse_frequencies(make_config().text_config)
    scaled = inverse_frequencies(make_config(rope_scaling=LLAMA3_SCALING).text_config)
    seen = set()
    for ours, frequency in zip(scaled, plain, strict=True):
        wavelength = 2 * math.pi / frequency  # Meta's code compares wavelengths
        if wavelength < 8192 / 4.0:
            seen.add("fast")
            theirs = frequency
        elif wavelength > 8192 / 1.0:
            seen.add("slow")
            theirs = frequency / 32.0
        else:
            seen.add("between")
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            theirs = (1 - smooth) * frequency / 32.0 + smooth * frequency
        assert ours == pytest.approx(theirs, rel=1e-14)
    assert seen == {"fast", "slow", "between"}
