"""Generates random scenes: objects enter, move, stop, hit, hide, grow and change colour.

Events do not overlap. A motion gets two captions, one at its start and one at its end (stops,
leaves, hits, hides), so that no caption depends on the future. Events keep a distance from the
frames of a 2 frames/s model, so that the first frame that shows each one is unambiguous.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import numpy as np

from mod_edge.toy_scenes.scene import (
    BIG,
    COLOUR_CHANGE_S,
    COLOURS,
    HELD_OUT,
    SHAPES,
    SMALL,
    Happening,
    Scene,
    Thing,
    Track,
)

INSTRUCTION = "Please narrate the video in real time."
GRID_S = 0.5
MAX_THINGS = 3
SPEED = (0.24, 0.42)  # sides of the picture per second
LEAST_PATH = 0.3  # so that a motion takes more than a second
GAP_S = (1.0, 3.5)
SILENCE_S = (7.0, 13.0)
SILENCE_SHARE = 0.12
QUERY_SHARE = 0.4
GROWTH_S = 0.8
LONGEST_ACT_S = 4.5
MARGIN = 0.03  # between objects that do not touch
CORNER = 1.25  # radii from the centre; no corner of an outline, even with shake, reaches further
NUM_TRIES = 40
NUMBERS = ("None.", "One.", "Two.", "Three.")
PLACES = {"On the left.": (0.0, 0.3), "In the middle.": (0.4, 0.6), "On the right.": (0.7, 1.0)}
SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
# Relative frequency of attempts; acts that often do not fit are attempted more often.
ACTS = {"enter": 4, "stroll": 5, "leave": 2.5, "hit": 6, "hide": 9, "turn": 1, "swell": 0.8}
# For training: a tenth more of all captions tell of rare events.
TRAINING_ACTS = ACTS | {"hit": 10, "hide": 30, "swell": 1.6}
# Seconds after a grid instant within which an event may begin or end, so that rounding cannot move
# it to another frame.
PHASE_BEGINS = (0.03, 0.2)
PHASE_ENDS = (0.12, 0.4)
PHASE_STOPS = (0.25, 0.45)  # late, so that the last step of the motion is long enough to see

Point = tuple[float, float]
Choice = TypeVar("Choice")


def write_scene(
    seed: int, duration_s: float, *, held_out: bool, acts: Mapping[str, float] = ACTS
) -> Scene:
    """A random scene; equal arguments return equal scenes.

    With `held_out` it shows at least one of the combinations held out of training, else none.
    `acts` are relative frequencies of attempts, with the names of `ACTS`.
    """
    attempt = 0
    while True:
        rng = np.random.default_rng([seed, attempt])
        scene = _SceneGenerator(rng, Scene(duration_s, seed), held_out, acts).play()
        shown = {(colour, each.shape) for each in scene.things for _, colour in each.colours}
        if not held_out or shown & HELD_OUT:
            return scene
        attempt += 1


class _SceneGenerator:
    """The scene so far, up to `time_s`."""

    def __init__(
        self, rng: np.random.Generator, scene: Scene, held_out: bool, acts: Mapping[str, float]
    ) -> None:
        self.rng = rng
        self.scene = scene
        self.held_out = held_out
        self.acts = acts
        self.time_s = 0.0

    def play(self) -> Scene:
        """The complete scene."""
        for _ in range(self.rng.integers(0, MAX_THINGS + 1)):
            self._place_thing()
        from_the_left = sorted(self.scene.things, key=lambda each: each.x.last)
        things = [(each.size, each.colour, each.shape) for each in from_the_left]
        self._answer(0.0, INSTRUCTION, describe(things))
        while True:
            is_long = self.rng.random() < SILENCE_SHARE
            pause_s = self.rng.uniform(*(SILENCE_S if is_long else GAP_S))
            next_s = self.time_s + pause_s
            if next_s > self.scene.duration_s - LONGEST_ACT_S:
                return self.scene
            if pause_s > 2.2 and self.rng.random() < QUERY_SHARE:
                self._ask(self._align(self.time_s + 1, PHASE_ENDS))
            self.time_s = next_s
            self._act()

    @property
    def present(self) -> list[Thing]:
        return [thing for thing in self.scene.things if not thing.has_left]

    @property
    def free(self) -> list[Thing]:
        """Objects that neither hide another one nor are hidden."""
        hiders = [thing.behind for thing in self.present if thing.behind]
        return [each for each in self.present if not each.behind and each not in hiders]

    def _act(self) -> None:
        names, weights = list(self.acts), np.array(list(self.acts.values()))
        for _ in range(NUM_TRIES):
            if getattr(self, f"_{self.rng.choice(names, p=weights / weights.sum())}")():
                return

    # Events; each returns whether it was possible.

    def _enter(self) -> bool:
        thing = self._new_thing()
        if thing is None:
            return False
        side, radius = self._pick(list(SIDES)), thing.radius.last
        dx, dy = SIDES[side]
        target = self._free_spot(radius)
        far = 0.5 + CORNER * radius
        outside = (0.5 + dx * far, 0.5 + dy * far)
        start = (outside[0] if dx else target[0], outside[1] if dy else target[1])
        if not self._is_clear(start, target, radius, but=()):
            return False
        speed = self.rng.uniform(*SPEED)
        entry_s = 2 * CORNER * radius / speed
        inside_s = self._align(self.time_s + entry_s, PHASE_ENDS)
        begin_s = inside_s - entry_s
        thing.x, thing.y = Track.constant(start[0]), Track.constant(start[1])
        self.scene.things.append(thing)
        keys = (thing.size, thing.colour, thing.shape, "enters")
        self._tell(inside_s, f"A {thing.size} {thing.name} enters from the {side}.", "enters", keys)
        self._travel(thing, begin_s, begin_s + math.dist(start, target) / speed, target)
        return True

    def _stroll(self) -> bool:
        """An object moves along one axis and stops."""
        movable = [*self.free, *(thing for thing in self.present if thing.behind)]
        if not movable:
            return False
        thing, way = self._pick(movable), self._pick(list(WAYS))
        length = self.rng.uniform(LEAST_PATH, 0.7)
        x, y, radius = thing.x.last, thing.y.last, thing.radius.last
        target = (x + WAYS[way][0] * length, y + WAYS[way][1] * length)
        if not all(radius + MARGIN <= each <= 1 - radius - MARGIN for each in target):
            return False
        passed = (thing,) if thing.behind is None else (thing, thing.behind)
        is_apart = thing.behind is None or self._is_apart(target, radius, but=(thing,))
        if not is_apart or not self._is_clear((x, y), target, radius, but=passed):
            return False
        end_s = self._set_out(thing, target, way, PHASE_STOPS)
        thing.behind = None
        # One more frame has to show that it no longer moves.
        keys = (*thing.name.split(), "stops")
        self._tell(end_s + GRID_S, f"The {thing.name} stops.", "stops", keys)
        self.time_s = end_s + GRID_S
        return True

    def _leave(self) -> bool:
        if not self.free:
            return False
        thing, way = self._pick(self.free), self._pick(list(WAYS))
        (dx, dy), radius = WAYS[way], thing.radius.last
        x, y = thing.x.last, thing.y.last
        far = 0.5 + CORNER * radius
        target = (0.5 + dx * far if dx else x, 0.5 + dy * far if dy else y)
        is_long = math.dist((x, y), target) >= LEAST_PATH + radius
        if not is_long or not self._is_clear((x, y), target, radius, but=(thing,)):
            return False
        end_s = self._set_out(thing, target, way, PHASE_ENDS)
        thing.has_left = True
        self._tell(end_s, f"The {thing.name} leaves.", "leaves", (*thing.name.split(), "leaves"))
        return True

    def _hit(self) -> bool:
        return self._approach("hits")

    def _hide(self) -> bool:
        return self._approach("hides behind")

    def _approach(self, ending: str) -> bool:
        """An object moves up to another one, or behind it if that is large and closed enough."""
        if len(self.free) < 2:
            return False
        thing, other = (self.free[i] for i in self.rng.permutation(len(self.free))[:2])
        start, goal = (thing.x.last, thing.y.last), (other.x.last, other.y.last)
        dx, dy = goal[0] - start[0], goal[1] - start[1]
        distance = math.hypot(dx, dy)
        is_slanted = min(abs(dx), abs(dy)) > 0.6 * max(abs(dx), abs(dy))
        radius, reach = thing.radius.last, 0.0
        if ending == "hits":
            reach = 0.92 * (radius + other.radius.last)  # they overlap a little: seen to touch
        elif other.size == "small" or thing.size == "big" or other.shape not in ("ball", "box"):
            return False
        if is_slanted or distance - reach < LEAST_PATH:
            return False
        share = (distance - reach) / distance
        target = (start[0] + dx * share, start[1] + dy * share)
        if not self._is_clear(start, target, radius, but=(thing, other)):
            return False
        if ending != "hits":
            thing.layer = min(each.layer for each in self.scene.things) - 1
            thing.behind = other
        end_s = self._set_out(thing, target, way_of(dx, dy), PHASE_ENDS)
        verb = ending.split()[0]
        text = f"The {thing.name} {ending} the {other.name}."
        self._tell(end_s, text, verb, (*thing.name.split(), verb, *other.name.split()))
        return True

    def _turn(self) -> bool:
        if not self.free:
            return False
        thing = self._pick(self.free)
        colours = self._colours_for(thing.shape)
        if not colours:
            return False
        time_s, name = self._align(self.time_s, PHASE_BEGINS), thing.name
        colour = self._pick(colours)
        thing.colours.append((time_s, colour))
        keys = (*name.split(), "turns", colour)
        self._tell(time_s + COLOUR_CHANGE_S, f"The {name} turns {colour}.", "turns", keys)
        return True

    def _swell(self) -> bool:
        """An object grows or shrinks."""
        if not self.free:
            return False
        thing = self._pick(self.free)
        radius, verb = (BIG, "grows") if thing.size == "small" else (SMALL, "shrinks")
        if radius == BIG and not self._is_apart((thing.x.last, thing.y.last), BIG, but=(thing,)):
            return False
        end_s = self._align(self.time_s + GROWTH_S, PHASE_ENDS)
        thing.radius.hold_until(end_s - GROWTH_S)
        thing.radius.reach(end_s, radius)
        self._tell(end_s, f"The {thing.name} {verb}.", verb, (*thing.name.split(), verb))
        return True

    def _ask(self, time_s: float) -> None:
        """Ask a question whose answer is visible now or was visible before."""
        things = self.present
        shape, thing = self._pick(SHAPES), self._pick(things) if things else None
        kind = self._pick(("colour", "object", "where", "is there", "count"))
        visible = [each for each in things if not each.behind]
        if kind == "is there":
            is_there = any(each.shape == shape for each in things)
            self._answer(time_s, f"Is there a {shape}?", "Yes." if is_there else "No.")
        elif kind == "count":
            if len(visible) == len(things):
                self._answer(time_s, "How many objects are there?", NUMBERS[len(things)])
        elif thing is not None and kind == "colour":
            self._answer(time_s, f"What colour is the {thing.shape}?", f"{thing.colour.title()}.")
        elif thing is not None and kind == "object":
            self._answer(time_s, f"Which object is {thing.colour}?", f"The {thing.shape}.")
        elif thing is not None and kind == "where":
            place = place_of(thing.x.last)
            if place is not None:
                self._answer(time_s, f"Where is the {thing.shape}?", place)

    # Captions, answers and tracks.

    def _tell(self, time_s: float, text: str, kind: str, keys: tuple[str, ...]) -> None:
        self.scene.happenings.append(Happening(round(time_s, 3), text, kind, keys))
        self.time_s = max(self.time_s, time_s)

    def _answer(self, time_s: float, query: str, answer: str) -> None:
        self.scene.happenings.append(Happening(round(time_s, 3), answer, query=query))
        self.time_s = max(self.time_s, time_s)

    def _set_out(self, thing: Thing, target: Point, way: str, phase: Point) -> float:
        """Start a motion with its caption; returns its end, in `phase` after a grid instant."""
        begin_s = self._align(self.time_s, PHASE_BEGINS)
        length = math.dist((thing.x.last, thing.y.last), target)
        end_s = self._align(begin_s + length / self.rng.uniform(*SPEED), phase)
        keys = (*thing.name.split(), "moves", way)
        self._tell(begin_s + 0.2, f"The {thing.name} moves {way}.", "moves", keys)
        self._travel(thing, begin_s, end_s, target)
        return end_s

    def _travel(self, thing: Thing, begin_s: float, end_s: float, target: Point) -> None:
        for track, value in ((thing.x, target[0]), (thing.y, target[1])):
            track.hold_until(begin_s)
            track.reach(end_s, value)
        self.time_s = end_s

    # Objects and places.

    def _new_thing(self) -> Thing | None:
        """An object unlike all present ones, not placed yet; None if there are enough."""
        shapes = [shape for shape in SHAPES if shape not in {each.shape for each in self.present}]
        self.rng.shuffle(shapes)
        colours = self._colours_for(shapes[0])
        if len(self.present) == MAX_THINGS or not colours:
            return None
        layer = 1 + max((each.layer for each in self.scene.things), default=0)
        radius = Track.constant(self._pick((SMALL, BIG)))
        nowhere = Track.constant(-1.0)
        return Thing(shapes[0], [(0.0, self._pick(colours))], nowhere, nowhere, radius, layer)

    def _place_thing(self) -> None:
        thing = self._new_thing()
        if thing is None:
            return
        x, y = self._free_spot(thing.radius.last)
        if self._is_apart((x, y), thing.radius.last, but=()):
            thing.x, thing.y = Track.constant(x), Track.constant(y)
            self.scene.things.append(thing)

    def _colours_for(self, shape: str) -> list[str]:
        """Colours that no present object has and that are allowed for this shape."""
        taken = {each.colour for each in self.present}
        return [
            colour
            for colour in COLOURS
            if colour not in taken and (self.held_out or (colour, shape) not in HELD_OUT)
        ]

    def _free_spot(self, radius: float) -> Point:
        """A place inside the picture, apart from the other objects if one is found in time."""
        spot = (0.5, 0.5)
        for _ in range(NUM_TRIES):
            low, high = radius + MARGIN, 1 - radius - MARGIN
            spot = (self.rng.uniform(low, high), self.rng.uniform(low, high))
            if self._is_apart(spot, radius, but=()):
                break
        return spot

    def _is_apart(self, spot: Point, radius: float, but: Collection[Thing]) -> bool:
        return self._is_clear(spot, spot, radius, but)

    def _is_clear(self, start: Point, end: Point, radius: float, but: Collection[Thing]) -> bool:
        """Whether an object moving straight from `start` to `end` touches no other one."""
        steps = np.linspace(0, 1, 12)[:, None]
        path = np.array(start) + steps * (np.array(end) - np.array(start))  # (steps, 2)
        for other in self.present:
            if not any(other is each for each in but):
                distance = np.hypot(*(path - (other.x.last, other.y.last)).T).min()
                if distance < 1.15 * (radius + other.radius.last) + MARGIN:
                    return False
        return True

    def _align(self, time_s: float, phase: Point) -> float:
        """The first time from `time_s` on that lies within `phase` after a grid instant."""
        offset_s = self.rng.uniform(*phase)
        return float(math.ceil((time_s - offset_s) / GRID_S) * GRID_S + offset_s)

    def _pick(self, choices: Sequence[Choice]) -> Choice:
        return choices[int(self.rng.integers(len(choices)))]


def frame_of(happening: Happening) -> int:
    """The grid frame after which the text is due; an answer comes before any later frame."""
    instants = round(happening.time_s / GRID_S, 3)
    return math.ceil(instants) if happening.query is None else math.floor(instants)


def describe(things: Sequence[tuple[str, str, str]]) -> str:
    """A sentence that lists the objects, (size, colour, shape) each, from left to right."""
    names = [f"a {' '.join(thing)}" for thing in things]
    if not names:
        return "Nothing is here."
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"{listed[0].upper()}{listed[1:]} {'are' if len(names) > 1 else 'is'} here."


def place_of(x: float) -> str | None:
    """The name of a place; None if that is disputable."""
    for place, (low, high) in PLACES.items():
        if low <= x <= high:
            return place
    return None


def way_of(dx: float, dy: float) -> str:
    """The main direction of a motion, one of `WAYS`."""
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"
