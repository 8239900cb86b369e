"""Profiles: the shipped ones load, a user's own one is checked, and every fault is named."""

from dataclasses import replace

import pytest

from mod_edge.errors import ConfigError
from mod_edge.profiles import Profile, load_profile, profile_names

OWN = """
window = "4096"
frames_per_step = 3
max_step_tokens = 96
max_new_tokens = 20
"""


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_loads_by_its_name(name):
    assert load_profile(name).name == name


def test_the_cpu_profile_keeps_two_minutes_and_answers_as_the_published_demo():
    assert load_profile("cpu") == Profile(
        name="cpu",
        window="120s",
        frames_per_step=1,
        max_step_tokens=256,
        max_new_tokens=100,
        evict_fraction=0.125,
    )


def test_a_path_loads_a_profile_of_the_users_own(tmp_path):
    path = tmp_path / "kiosk.toml"
    path.write_text(OWN)
    assert load_profile(path) == Profile("kiosk", "4096", 3, 96, 20, evict_fraction=1 / 8)
    assert load_profile(str(path)) == load_profile(path)


def test_unknown_profile_lists_the_known_ones_with_the_nearest_hint():
    with pytest.raises(ConfigError, match=r'called "cpuu"; did you mean "cpu"\?.*known: .*cpu'):
        load_profile("cpuu")
    with pytest.raises(ConfigError, match=r"known: .*cpu") as caught:
        load_profile("zzz")
    assert "did you mean" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the profile .*nowhere\.toml"):
        load_profile(tmp_path / "nowhere.toml")


def test_all_faults_of_a_file_are_named_at_once(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(
        'windw = "4096"\ncolour = 1\nframes_per_step = true\nmax_step_tokens = 2.5\n'
        'max_new_tokens = 5\nevict_fraction = "a lot"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    for fault in (
        "unknown key windw (did you mean window?)",
        "unknown key colour",
        "missing key window",
        "frames_per_step = True: wanted int",
        "max_step_tokens = 2.5: wanted int",
        "evict_fraction = 'a lot': wanted float",
    ):
        assert fault in message
    assert "max_new_tokens" not in message


def test_a_window_written_as_a_number_says_to_quote_it(tmp_path):
    path = tmp_path / "bare.toml"
    path.write_text(OWN.replace('"4096"', "4096"))
    with pytest.raises(ConfigError, match='wanted str, write window = "4096"'):
        load_profile(path)


def test_broken_toml_is_a_config_error_with_the_line(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("window = \n")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML: .*line 1"):
        load_profile(path)


@pytest.mark.parametrize("window", ["1", "4096", "120s", "0.5s"])
def test_a_window_is_whole_tokens_or_seconds(window):
    assert replace(load_profile("cpu"), window=window).window == window


@pytest.mark.parametrize("window", ["", "0", "0s", "0.0s", "-5s", "1.5", "2min", "s", " 9s", "9ss"])
def test_any_other_window_is_refused(window):
    with pytest.raises(ConfigError, match='wanted seconds as "120s" or tokens as "4096"'):
        replace(load_profile("cpu"), window=window)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("frames_per_step", 0),
        ("max_step_tokens", -1),
        ("max_new_tokens", 0),
        ("evict_fraction", 0.0),
        ("evict_fraction", 1.0),
    ],
)
def test_values_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=f'profile "cpu": {key} = {value}: wanted'):
        replace(load_profile("cpu"), **{key: value})
