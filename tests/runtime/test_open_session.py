"""Opening a session: defaults, graphs with a fixed window, and what closing closes."""

import pytest

from mod_edge.bundle.bundle import open_bundle
from mod_edge.errors import BackendError, ConfigError
from mod_edge.profiles import load_profile
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.cpu.onnx_model import OnnxModel
from mod_edge.runtime.loaded_model import StreamLimits, WrappedStream
from mod_edge.runtime.open_session import open_session
from mod_edge.runtime.session import Session
from tests.conftest import CAPACITY


def test_graphs_with_a_fixed_window_run_with_it(bundle_for):
    bundle = bundle_for("cuda", "fp32")
    with open_session(bundle, backend="onnx", max_new_tokens=40) as session:
        plan = session.plan
    assert plan.capacity == CAPACITY
    assert (plan.num_seconds, plan.num_seconds_full) == (2.0, 0.0)
    heads_and_dims = 2 * 16
    assert plan.size_bytes == 2 * 3 * sum(CAPACITY) * heads_and_dims * 4  # 3 layers of each kind


def test_a_fixed_window_too_small_for_the_profiles_replies_is_an_error(bundle_for):
    says = r"148 in MoD layers\): .* take 205 \(197\); export with a larger --window, or take"
    with pytest.raises(ConfigError, match=says):
        open_session(bundle_for("cuda", "fp32"), backend="onnx")


def test_a_profile_can_be_an_object_a_name_or_a_path(tiny_bundle, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        'targets = ["cpu"]\nprecision = "fp32"\nwindow = "20s"\nmax_step_tokens = 64\n'
        "frames_per_step = { min = 1, opt = 2, max = 2 }\nmax_new_tokens = 7\n"
    )
    for profile in (path, str(path), load_profile(path)):
        with open_session(tiny_bundle, profile=profile) as session:
            assert session.plan.num_seconds == 20
            assert session.options.frames_per_step == 2
            assert session.options.max_new_tokens == 7
    with open_session(tiny_bundle) as session:
        assert session.plan.num_seconds == 120


# ---- closing ----


class FailingStream(WrappedStream):
    """Cannot be closed, and notes that it was to be."""

    def __init__(self, inner, closed):
        super().__init__(inner)
        self.closed = closed

    def close(self):
        self.closed.append("stream")
        raise BackendError("the GPU is gone")


@pytest.mark.parametrize(
    ("is_shared", "wanted"), [(False, ["stream", "model"]), (True, ["stream"])]
)
def test_a_session_closes_its_stream_then_a_model_of_its_own(tiny_bundle, is_shared, wanted):
    bundle, closed = open_bundle(tiny_bundle), []
    plan = bundle.plan("260", 12)
    model = OnnxModel(bundle, StreamLimits(plan.capacity, 64, 1))
    model.close = lambda: closed.append("model")
    session = Session(
        FailingStream(model.open_stream(), closed),
        bundle.config,
        bundle.tokenizer,
        plan,
        SessionOptions(0.5, 12, 1, 64, 0.125),
        model=None if is_shared else model,
    )
    with pytest.raises(BackendError, match="the GPU is gone"), session:
        pass
    assert closed == wanted
