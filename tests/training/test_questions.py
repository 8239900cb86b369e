"""More questions about scenes: true ones, at frames at which nothing else is said."""

import pytest

from mod_edge.training.questions import DESCRIBE, with_questions
from mod_edge.training.scene import COLOURS, SHAPES, Scene, Thing, Track
from mod_edge.training.screenplay import frame_of, write_scene

DURATION_S = 30.0


@pytest.fixture(scope="module")
def scenes():
    return [write_scene(seed, DURATION_S, held_out=False) for seed in range(30)]


def added(scene):
    return [each for each in with_questions(scene).happenings if each not in scene.happenings]


def still(shape, colour, x, y, radius=0.14, layer=0):
    tracks = map(Track.constant, (x, y, radius))
    return Thing(shape, [(0.0, colour)], *tracks, layer=layer)


def test_many_are_asked_and_nothing_else_changes(scenes):
    for scene in scenes:
        told = with_questions(scene)
        assert [each for each in told.happenings if each in scene.happenings] == scene.happenings
        assert told.things is scene.things
    assert sum(len(added(scene)) for scene in scenes) > 4 * len(scenes)


def test_no_two_things_are_said_at_one_frame(scenes):
    for scene in scenes:
        frames = list(map(frame_of, with_questions(scene).happenings))
        assert frames == sorted(set(frames))


def test_the_picture_is_described_from_the_left():
    things = [still("box", "red", 0.8, 0.2), still("star", "cyan", 0.2, 0.8, radius=0.085)]
    questions = added(Scene(DURATION_S, 3, things))
    answers = {each.text for each in questions if each.query == DESCRIBE}
    assert answers == {"A small cyan star and a big red box are here."}


def test_answers_are_about_what_is_seen(scenes):
    for scene in scenes:
        for each in added(scene):
            seen = [look for look in scene.looks(each.time_s) if 0 < look.x < 1 and 0 < look.y < 1]
            words = {look.next_colour for look in seen} | {look.shape for look in seen}
            named = each.text.lower().strip(".").replace(",", "").split()
            assert {word for word in named if word in {*COLOURS, *SHAPES}} <= words


def test_nothing_is_asked_while_one_thing_covers_another():
    things = [still("box", "red", 0.5, 0.5), still("star", "cyan", 0.52, 0.5, layer=-1)]
    assert added(Scene(DURATION_S, 3, things)) == []


def test_nothing_is_asked_while_something_is_half_outside():
    assert added(Scene(DURATION_S, 3, [still("box", "red", 0.05, 0.5)])) == []
