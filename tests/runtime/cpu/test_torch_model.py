"""The reference as a stream: the rows of each layer while the window rolls."""

import numpy as np
import pytest

from mod_edge.config import MoDConfig
from mod_edge.plan.kv_window import KvWindow, Rows
from mod_edge.runtime.cpu.torch_model import TorchModel
from mod_edge.runtime.stepper import Stepper

pytestmark = pytest.mark.numeric

POLICIES = [
    None,
    MoDConfig(),
    MoDConfig("all_deep", selection="random"),
    MoDConfig("early_exit"),
    MoDConfig("layer_skip"),
]


@pytest.mark.parametrize("mod", POLICIES, ids=str)
def test_every_layer_holds_the_rows_of_its_geometry_while_the_window_rolls(
    make_config, make_model, mod
):
    config = make_config(mod=mod)
    model = make_model(config)
    caches = model.empty_caches()
    model.empty_caches = lambda: caches
    window = KvWindow(Rows(60, 60), evict_fraction=0.25)
    stepper = Stepper(TorchModel(model).open_stream(), config, window, max_step_tokens=40)
    random = np.random.default_rng(0)
    for number in range(14):
        num_frames = 1 + number % 2
        embeds = random.normal(size=(num_frames, 10, 48)).astype(np.float32)
        prefix = [5, 6, 7] if number == 0 else [2]
        logits = stepper.feed_frames(prefix, embeds, closes_sink=number == 0)
        assert np.isfinite(logits).all()
        for index, cache in enumerate(caches):
            rows = window.length.mod if index in config.mod_layers else window.length.dense
            assert len(cache.positions) == rows
            # ascending with gaps where tokens were skipped, up to the newest token
            assert (cache.positions.diff() > 0).all()
            assert cache.positions[-1] < window.num_tokens - window.num_evicted
    assert len(stepper.rolls) > 3
    num_text = 3 + sum(1 + number % 2 for number in range(14)) - 1
    assert window.num_tokens == num_text + 10 * 21
