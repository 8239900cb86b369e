"""Additional questions about scenes: true, and at frames without other text."""

import pytest

from mod_edge.toy_scenes.questions import DESCRIBE, HAPPENING, NOTHING, change_at, with_questions
from mod_edge.toy_scenes.scene import COLOURS, SHAPES, Scene, Thing, Track
from mod_edge.toy_scenes.scene_generator import frame_of, write_scene

DURATION_S = 30.0


@pytest.fixture(scope="module")
def scenes():
    return [write_scene(seed, DURATION_S, held_out=False) for seed in range(30)]


def added(scene):
    return [each for each in with_questions(scene).happenings if each not in scene.happenings]


def still(shape, colour, x, y, radius=0.14, layer=0):
    tracks = map(Track.constant, (x, y, radius))
    return Thing(shape, [(0.0, colour)], *tracks, layer=layer)


def test_questions_are_added_and_nothing_else_changes(scenes):
    for scene in scenes:
        told = with_questions(scene)
        assert [each for each in told.happenings if each in scene.happenings] == scene.happenings
        assert told.things is scene.things
    assert sum(len(added(scene)) for scene in scenes) > 4 * len(scenes)


def test_no_frame_has_two_texts(scenes):
    for scene in scenes:
        frames = list(map(frame_of, with_questions(scene).happenings))
        assert frames == sorted(set(frames))


def test_descriptions_go_from_left_to_right():
    things = [still("box", "red", 0.8, 0.2), still("star", "cyan", 0.2, 0.8, radius=0.085)]
    questions = added(Scene(DURATION_S, 3, things))
    answers = {each.text for each in questions if each.query == DESCRIBE}
    assert answers == {"A small cyan star and a big red box are here."}


def test_answers_name_only_visible_objects(scenes):
    for scene in scenes:
        for each in added(scene):
            # A moving object may be partly outside; no corner reaches further than 0.18.
            edge = 0.18 if each.query == HAPPENING else 0.0
            seen = [
                look
                for look in scene.looks(each.time_s)
                if all(-edge < place < 1 + edge for place in (look.x, look.y))
            ]
            words = {look.next_colour for look in seen} | {look.shape for look in seen}
            named = each.text.lower().strip(".").replace(",", "").split()
            assert {word for word in named if word in {*COLOURS, *SHAPES}} <= words


def moving(dx, dy, growth=0.0):
    """A red box that changes between 1.05 and 3.05 s, at these rates per second."""
    values = ((0.5, dx), (0.5, dy), (0.1, growth))
    tracks = [Track([1.05, 3.05], [start, start + 2 * speed]) for start, speed in values]
    return Thing("box", [(0.0, "red")], *tracks)


@pytest.mark.parametrize(
    ("thing", "told"),
    [
        (moving(0.2, 0.05), "The red box moves right."),
        (moving(-0.2, 0.0), "The red box moves left."),
        (moving(0.05, -0.2), "The red box moves up."),
        (moving(0.0, 0.2), "The red box moves down."),
        (moving(0.0, 0.0, 0.04), "The red box grows."),
        (moving(0.0, 0.0, -0.04), "The red box shrinks."),
        (moving(0.05, 0.0), None),  # a step that could be the camera's
        (moving(0.0, 0.0), NOTHING),
    ],
)
def test_a_change_is_named_while_it_lasts(thing, told):
    scene = Scene(DURATION_S, 3, [thing])
    assert change_at(scene, 1.0) == NOTHING
    assert change_at(scene, 2.0) == told
    assert change_at(scene, 4.0) == NOTHING


def test_entering_and_changing_colour_are_disputable_changes():
    enters = still("box", "red", 0.5, 0.5)
    enters.x = Track([1.0, 2.0], [-0.2, 0.5])
    turns = still("star", "cyan", 0.5, 0.5)
    turns.colours.append((1.2, "blue"))
    assert change_at(Scene(DURATION_S, 3, [enters]), 1.5) is None
    assert change_at(Scene(DURATION_S, 3, [turns]), 1.5) is None


def test_questions_about_changes_are_as_frequent_as_descriptions(scenes):
    asked = [each for scene in scenes for each in added(scene)]
    answers = [each.text for each in asked if each.query == HAPPENING]
    described = sum(each.query == DESCRIBE for each in asked)
    assert len(answers) > described > 2 * len(scenes)
    assert 0.1 < answers.count(NOTHING) / len(answers) < 0.5


@pytest.mark.parametrize(
    "things",
    [
        [still("box", "red", 0.5, 0.5), still("star", "cyan", 0.52, 0.5, layer=-1)],
        [still("box", "red", 0.05, 0.5)],
    ],
    ids=["hidden", "half outside"],
)
def test_no_question_is_about_a_picture_with_an_unclear_object(things):
    assert {each.query for each in added(Scene(DURATION_S, 3, things))} == {HAPPENING}
