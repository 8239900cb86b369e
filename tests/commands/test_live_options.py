"""The options of `run` for live sources."""

import math

import pytest
import typer

from mod_edge.commands.live_options import live_policy, policies_of
from mod_edge.errors import ConfigError
from mod_edge.runtime.capture.open_source import open_source
from mod_edge.runtime.capture.source import LIVE, Keep
from mod_edge.runtime.capture.source_name import parse_source
from tests.runtime.capture.numbered_video import write_video


def test_without_an_option_there_is_no_policy():
    assert live_policy(None, None, None) is None


def test_what_is_the_default_anyway_is_no_contradiction_for_a_file(tmp_path):
    path = write_video(tmp_path / "a.avi", fps=10, num_frames=10)
    with open_source(path, fps=2, policy=live_policy(None, "off", None)) as video:
        assert len(list(video)) == 2


def test_a_file_beside_a_live_source_leaves_its_options_to_it():
    policy = live_policy(None, "forever", None)
    file, folder, camera = map(parse_source, ("clip.mp4", "*.png", "0"))
    assert policies_of([file, camera, folder], policy) == [None, policy, None]
    assert policies_of([file, folder], policy) == [policy, policy]


def test_the_options_make_one_policy():
    policy = live_policy("queue:4", "forever", 30.0)
    assert policy.keep == Keep("queue", 4)
    assert (policy.reconnect_s, policy.frozen_after_s) == (math.inf, 30.0)
    assert policy.stall_s == LIVE.stall_s


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("latest", None, None), "--keep"),
        ((None, "sometimes", None), "--reconnect"),
        ((None, None, 0.0), "--frozen-after"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_value_is_a_usage_error_that_names_the_option(options, name):
    with pytest.raises(typer.BadParameter) as caught:
        live_policy(*options)
    assert caught.value.param_hint == name


@pytest.mark.parametrize(
    "options",
    [("newest", None, None), ("queue:2", None, None), ("every", "60s", None), (None, None, 9.0)],
    ids=str,
)
def test_options_of_live_sources_are_refused_for_a_file(tmp_path, options):
    path = write_video(tmp_path / "a.avi", fps=10, num_frames=3)
    with pytest.raises(ConfigError, match=r"a\.avi has an end.*are for cameras and streams"):
        open_source(path, fps=2, policy=live_policy(*options))


def test_every_frame_of_a_file_may_be_asked_for_by_name(tmp_path):
    path = write_video(tmp_path / "a.avi", fps=10, num_frames=10)
    with open_source(path, fps=2, policy=live_policy("every", None, None)) as video:
        assert len(list(video)) == 2


def test_every_frame_of_a_live_source_is_refused():
    with pytest.raises(ConfigError, match=r"test:// .* every frame cannot be kept"):
        open_source("test://", fps=2, policy=live_policy("every", None, None))
