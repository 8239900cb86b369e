"""More questions about a scene, for training alone: each picture is worth some words.

Captions tell of one object at a time, and rarely. Asked what is here, again and again, a model has
to name everything it sees: that is how it learns the words for colours, shapes, sizes and places.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mod_edge.training.scene import BIG, SMALL, Happening, Look, Scene
from mod_edge.training.screenplay import GRID_S, NUMBERS, describe, frame_of, place_of

QUESTION_SHARE = 0.2  # of the frames at which nothing else is said
DESCRIBE = "What is here?"
DESCRIBE_SHARE = 0.7
COVERED = 0.7  # of another's radius: nearer to its centre, an object may be hidden
SIZE_SLACK = 0.005


def with_questions(scene: Scene) -> Scene:
    """The scene with questions at frames at which nothing else is said, the same each time."""
    rng = np.random.default_rng([scene.seed, 3])
    taken = set(map(frame_of, scene.happenings))
    questions = []
    for frame in range(1, int(scene.duration_s / GRID_S)):
        if frame not in taken and rng.random() < QUESTION_SHARE:
            asked = list(_questions(scene, frame * GRID_S))
            if asked:
                is_describing = rng.random() < DESCRIBE_SHARE
                query, answer = asked[0 if is_describing else rng.integers(len(asked))]
                questions.append(Happening(frame * GRID_S, answer, query=query))
    happenings = sorted([*scene.happenings, *questions], key=lambda each: each.time_s)
    return replace(scene, happenings=happenings)


def _questions(scene: Scene, time_s: float) -> Iterator[tuple[str, str]]:
    """Questions with their answers, to describe everything first; none while things are unclear."""
    looks = [look for look in scene.looks(time_s) if _is_near(look)]
    if not all(map(_is_clear, looks)) or any(
        math.dist((one.x, one.y), (other.x, other.y)) < COVERED * max(one.radius, other.radius)
        for index, one in enumerate(looks)
        for other in looks[:index]
    ):
        return
    from_the_left = sorted(looks, key=lambda look: look.x)
    things = [(_size(look), look.next_colour, look.shape) for look in from_the_left]
    yield DESCRIBE, describe(things)
    yield "How many objects are there?", NUMBERS[len(looks)]
    for look in looks:
        yield f"What colour is the {look.shape}?", f"{look.next_colour.title()}."
        yield f"Which object is {look.next_colour}?", f"The {look.shape}."
        place = place_of(look.x)
        if place is not None:
            yield f"Where is the {look.shape}?", place


def _is_near(look: Look) -> bool:
    """Whether anything of it may be in the picture."""
    return all(-1.25 * look.radius < place < 1 + 1.25 * look.radius for place in (look.x, look.y))


def _is_clear(look: Look) -> bool:
    """Whether it is wholly in the picture, of one colour and of one of the two sizes."""
    is_inside = all(look.radius <= place <= 1 - look.radius for place in (look.x, look.y))
    is_sized = min(abs(look.radius - SMALL), abs(look.radius - BIG)) < SIZE_SLACK
    return is_inside and is_sized and look.blend in (0.0, 1.0)


def _size(look: Look) -> str:
    return "small" if abs(look.radius - SMALL) < SIZE_SLACK else "big"
