"""Events of generated scenes and their times."""

from itertools import pairwise

import pytest

from mod_edge.toy_scenes.scene import HELD_OUT, SHAPES, Track
from mod_edge.toy_scenes.scene_generator import GRID_S, INSTRUCTION, write_scene

NUM_SEEDS = 60
DURATION_S = 30.0


@pytest.fixture(scope="module")
def scenes():
    return [write_scene(seed, DURATION_S, held_out=False) for seed in range(NUM_SEEDS)]


def combinations(scene):
    return {(colour, thing.shape) for thing in scene.things for _, colour in thing.colours}


def test_the_same_seed_gives_the_same_scene(scenes):
    assert write_scene(7, DURATION_S, held_out=False).happenings == scenes[7].happenings
    assert scenes[7].happenings != scenes[8].happenings


def test_held_out_combinations_are_shown_only_on_request(scenes):
    assert not any(combinations(scene) & HELD_OUT for scene in scenes)
    for seed in range(10):
        assert combinations(write_scene(seed, DURATION_S, held_out=True)) & HELD_OUT


def test_the_first_answer_describes_the_opening(scenes):
    for scene in scenes:
        opening = scene.happenings[0]
        there = [thing for thing in scene.things if 0 < thing.x.at(0) < 1 and 0 < thing.y.at(0) < 1]
        assert (opening.time_s, opening.query) == (0.0, INSTRUCTION)
        assert sum(opening.text.count(f" {shape}") for shape in SHAPES) == len(there)


def test_every_kind_of_event_and_query_occurs(scenes):
    words = {key for scene in scenes for each in scene.happenings for key in each.keys}
    verbs = {"enters", "moves", "stops", "leaves", "hits", "hides", "turns", "grows", "shrinks"}
    assert verbs <= words
    queries = {each.query.split()[0] for scene in scenes for each in scene.happenings if each.query}
    assert queries == {"Please", "What", "Which", "Is", "How", "Where"}


def test_the_keys_are_words_of_the_caption_in_order(scenes):
    for scene in scenes:
        for each in scene.happenings:
            words = iter(each.text.lower().strip(".").split())
            assert all(key in words for key in each.keys)


def test_events_keep_a_distance_from_the_frames_of_a_model(scenes):
    for scene in scenes:
        for each in scene.happenings[1:]:
            if each.query is None:
                before_s = -each.time_s % GRID_S
                assert 0.045 <= before_s <= 0.39, each


def test_there_are_long_silences(scenes):
    gaps_s = [
        second.time_s - first.time_s
        for scene in scenes
        for first, second in pairwise(scene.happenings)
    ]
    assert max(gaps_s) > 7
    assert sorted(gaps_s)[len(gaps_s) // 2] < 4


def test_visible_objects_never_share_a_shape(scenes):
    for scene in scenes:
        for time_s in (0.0, 10.0, 20.0, 29.0):
            looks = scene.looks(time_s)
            seen = [
                look
                for look in looks
                if -look.radius < look.x < 1 + look.radius
                and -look.radius < look.y < 1 + look.radius
            ]
            assert len({look.shape for look in seen}) == len(seen)


def test_an_object_is_inside_when_its_entry_is_captioned(scenes):
    for scene in scenes:
        for each in scene.happenings:
            if "enters" in each.keys:
                _size, colour, shape, _ = each.keys
                looks = scene.looks(each.time_s)
                look = [look for look in looks if (look.shape, look.colour) == (shape, colour)][-1]
                assert all(look.radius <= place <= 1 - look.radius for place in (look.x, look.y))


def test_a_track_is_constant_outside_its_keys_and_linear_between_them():
    track = Track.constant(1.0)
    track.hold_until(2.0)
    track.reach(4.0, 3.0)
    assert [track.at(time_s) for time_s in (-1, 0, 2, 3, 4, 9)] == [1, 1, 1, 2, 3, 3]
