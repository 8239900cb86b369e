"""Additional questions about a scene, used only for training.

Captions are rare and name one object at a time. "What is here?", asked often, makes a model name
everything it sees, which teaches it the words for colours, shapes, sizes and places. "What is
happening?" makes it compare pictures, at many more instants than those at which motions begin.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mod_edge.toy_scenes.scene import BIG, SMALL, Happening, Look, Scene
from mod_edge.toy_scenes.scene_generator import (
    GRID_S,
    NUMBERS,
    describe,
    frame_of,
    place_of,
    way_of,
)

DESCRIBE, HAPPENING, DETAIL = "What is here?", "What is happening?", "a detail"
# Shares of the frames without other text that get a question of each kind; the rest get none.
CALM_SHARES = {DESCRIBE: 0.1, HAPPENING: 0.03, DETAIL: 0.06}
CHANGE_SHARES = {DESCRIBE: 0.06, HAPPENING: 0.4, DETAIL: 0.06}
NOTHING = "Nothing."
COVERED = 0.7  # an object closer than this share of another's radius to its centre may be hidden
SIZE_SLACK = 0.005
# Changes of place and radius per frame: from the first two on it clearly moves or grows, up to
# STILL it clearly does not; in between it is disputable.
LEAST_STEP, LEAST_GROWTH, STILL = 0.07, 0.015, 0.003

Question = tuple[str, str]


def with_questions(scene: Scene) -> Scene:
    """The scene with questions at frames without other text; the same each time."""
    rng = np.random.default_rng([scene.seed, 3])
    taken = set(map(frame_of, scene.happenings))
    questions = []
    for frame in range(1, int(scene.duration_s / GRID_S)):
        time_s = frame * GRID_S
        asked = [] if frame in taken else _candidates(scene, time_s, rng.random())
        if asked:
            query, answer = asked[rng.integers(len(asked))]
            questions.append(Happening(time_s, answer, query=query))
    happenings = sorted([*scene.happenings, *questions], key=lambda each: each.time_s)
    return replace(scene, happenings=happenings)


def _candidates(scene: Scene, time_s: float, lot: float) -> list[Question]:
    """Questions, with answers, of the kind that `lot` (0..1) selects; often none."""
    change = change_at(scene, time_s)
    is_calm = change is None or change == NOTHING
    for kind, share in (CALM_SHARES if is_calm else CHANGE_SHARES).items():
        if lot < share:
            if kind == HAPPENING:
                return [] if change is None else [(HAPPENING, change)]
            views = list(_views(scene, time_s))
            return views[:1] if kind == DESCRIBE else views[1:]
        lot -= share
    return []


def change_at(scene: Scene, time_s: float) -> str | None:
    """What has happened since the frame before; None if that is disputable."""
    changes: list[str] = []
    for look, before in zip(scene.looks(time_s), scene.looks(time_s - GRID_S), strict=True):
        if not (_is_near(look) or _is_near(before)):
            continue
        dx, dy, growth = look.x - before.x, look.y - before.y, look.radius - before.radius
        step = max(abs(dx), abs(dy))
        name = f"The {look.next_colour} {look.shape}"
        if look.next_colour != before.next_colour or not (_is_near(look) and _is_near(before)):
            return None
        if step > LEAST_STEP:
            changes.append(f"{name} moves {way_of(dx, dy)}.")
        elif abs(growth) > LEAST_GROWTH:
            changes.append(f"{name} {'grows' if growth > 0 else 'shrinks'}.")
        elif max(step, abs(growth)) > STILL:
            return None
    return " ".join(changes) or NOTHING


def _views(scene: Scene, time_s: float) -> Iterator[Question]:
    """Questions about one picture, the description first; none while an object is unclear."""
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
    """Whether any part of the object may be in the picture."""
    return all(-1.25 * look.radius < place < 1 + 1.25 * look.radius for place in (look.x, look.y))


def _is_clear(look: Look) -> bool:
    """Whether the object is fully in the picture, with one colour and one of the two sizes."""
    is_inside = all(look.radius <= place <= 1 - look.radius for place in (look.x, look.y))
    is_sized = min(abs(look.radius - SMALL), abs(look.radius - BIG)) < SIZE_SLACK
    return is_inside and is_sized and look.blend in (0.0, 1.0)


def _size(look: Look) -> str:
    return "small" if abs(look.radius - SMALL) < SIZE_SLACK else "big"
