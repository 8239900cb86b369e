"""A bundle computes the same on an older processor: AVX2, no AVX-512, emulated by qemu.

ONNX Runtime, numpy and OpenCV choose their kernels by the processor; unlike torch and MKL they have
no variable to choose older ones.
"""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent / "fixed_stream.py"
QEMU = "qemu-x86_64"
# Largest difference of a logit: measured 2.7e-5 of 11.9 between AVX-512 and AVX2, with equal frame
# embeddings. One pixel brighter by one level gives 9e-3, frame embeddings rounded to half precision
# 1.7e-2, a sink that is not rebased 10.
ATOL_LOGITS = 3e-4
# Measured 0.
ATOL_EMBEDS = 1e-4

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        shutil.which(QEMU) is None or platform.machine() != "x86_64",
        reason=f"needs {QEMU}, Debian's package qemu-user, on an x86-64 machine",
    ),
]


@pytest.fixture(scope="module")
def streams(tiny_bundle, tmp_path_factory):
    """The output of `fixed_stream.py` on this processor and on an emulated Haswell (10 s)."""
    folder = tmp_path_factory.mktemp("streams")
    results = []
    for name, emulator in (("here", []), ("haswell", [QEMU, "-cpu", "Haswell"])):
        out = folder / f"{name}.npz"
        command = [*emulator, sys.executable, str(SCRIPT), str(tiny_bundle), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        with np.load(out) as arrays:
            results.append(dict(arrays))
    return results


def features_of(stream):
    """Instruction sets that OpenCV found: * marks those it looked for, ? those that are missing."""
    marked = str(stream["cpu_features"]).split()
    return {name.strip("*") for name in marked if not name.endswith("?")}


def test_the_emulated_processor_has_avx2_and_no_avx_512(streams):
    features = features_of(streams[1])
    assert "AVX2" in features, f"{QEMU} emulates AVX2 from version 7.2 on"
    assert not any(name.startswith("AVX512") for name in features)


def test_frames_are_decoded_resized_and_encoded_alike(streams):
    here, haswell = streams
    np.testing.assert_array_equal(here["pixels"], haswell["pixels"])
    np.testing.assert_allclose(here["embeds"], haswell["embeds"], rtol=0, atol=ATOL_EMBEDS)


def test_the_stream_keeps_the_same_tokens_and_rolls(streams):
    here, haswell = streams
    assert here["num_rolls"] == haswell["num_rolls"] >= 3
    np.testing.assert_array_equal(here["kept"], haswell["kept"])
    assert np.unique(here["kept"], axis=1).shape[1] >= 12  # it differs from frame to frame


def test_logits_differ_by_rounding_only(streams):
    here, haswell = streams
    np.testing.assert_allclose(here["logits"], haswell["logits"], rtol=0, atol=ATOL_LOGITS)
