"""A scene of simple objects and a timeline of events: pure data, without rendering.

The world is the unit square, (0, 0) at the top left. No two objects share a shape or a colour, so
"the red ball" names one of them.
"""

from bisect import bisect_right
from dataclasses import dataclass, field

COLOURS = ("red", "green", "blue", "yellow", "pink", "cyan")
SHAPES = ("ball", "box", "triangle", "star", "cross")
SMALL, BIG = 0.085, 0.14  # radius, a share of the picture's side
SIZE_NAMES = {SMALL: "small", BIG: "big"}
# One in five combinations is never shown in training; they cover every colour and shape.
HELD_OUT = frozenset(
    {
        ("red", "star"),
        ("green", "ball"),
        ("blue", "triangle"),
        ("yellow", "cross"),
        ("pink", "box"),
        ("cyan", "star"),
    }
)
COLOUR_CHANGE_S = 0.2


@dataclass
class Track:
    """A value over time: linear between its keys, constant outside them."""

    times_s: list[float]
    values: list[float]

    @staticmethod
    def constant(value: float) -> "Track":
        """A track that stays at `value`."""
        return Track([0.0], [value])

    def hold_until(self, time_s: float) -> None:
        """Keep the last value up to `time_s`, when a change begins."""
        self.times_s.append(time_s)
        self.values.append(self.values[-1])

    def reach(self, time_s: float, value: float) -> None:
        """Change linearly to `value` at `time_s`, which is after all keys."""
        self.times_s.append(time_s)
        self.values.append(value)

    def at(self, time_s: float) -> float:
        """The value at `time_s`."""
        after = bisect_right(self.times_s, time_s)
        if after == 0:
            return self.values[0]
        if after == len(self.times_s):
            return self.values[-1]
        start, end = self.times_s[after - 1 : after + 1]
        share = (time_s - start) / (end - start)
        return self.values[after - 1] * (1 - share) + self.values[after] * share

    @property
    def last(self) -> float:
        """The value after all keys."""
        return self.values[-1]


@dataclass
class Thing:
    """One object: its properties and its tracks over time.

    Attributes:
        shape: one of `SHAPES`.
        colours: (start in seconds, colour), rising.
        x, y: its centre.
        radius: half its width.
        layer: objects with a higher one are drawn on top.
        behind: the object that hides it, if any.
        has_left: whether it has left the picture for good.
    """

    shape: str
    colours: list[tuple[float, str]]
    x: Track
    y: Track
    radius: Track
    layer: int = 0
    behind: "Thing | None" = None
    has_left: bool = False

    @property
    def colour(self) -> str:
        """Its colour after all changes."""
        return self.colours[-1][1]

    @property
    def name(self) -> str:
        """Its name in captions, like "red ball"."""
        return f"{self.colour} {self.shape}"

    @property
    def size(self) -> str:
        """Its size after all changes: "small" or "big"."""
        return SIZE_NAMES[self.radius.last]


@dataclass(frozen=True)
class Look:
    """How one object looks at an instant.

    Attributes:
        shape: one of `SHAPES`.
        colour, next_colour: blended by `blend`, 0..1, during a change of colour.
        x, y, radius: see `Thing`.
    """

    shape: str
    colour: str
    next_colour: str
    blend: float
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Happening:
    """A caption or an answer about the scene.

    Attributes:
        time_s: for a caption, the first instant at which its event can be seen; for an answer, the
            time of its query.
        text: the caption or the answer.
        kind: the kind of event, which is the caption's verb; empty for an answer.
        keys: the caption's words that must be right.
        query: the question; None for a caption.
    """

    time_s: float
    text: str
    kind: str = ""
    keys: tuple[str, ...] = ()
    query: str | None = None


@dataclass
class Scene:
    """A scene's objects and its texts.

    Attributes:
        duration_s: its length.
        seed: seeds the renderer.
        things: all objects that are ever visible.
        happenings: in order of time; the first, at 0 s, describes the opening.
    """

    duration_s: float
    seed: int
    things: list[Thing] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)

    def looks(self, time_s: float) -> list[Look]:
        """The objects at `time_s`, the lowest layer first."""
        return [_look(thing, time_s) for thing in sorted(self.things, key=lambda each: each.layer)]


def _look(thing: Thing, time_s: float) -> Look:
    current = max(bisect_right(thing.colours, time_s, key=lambda each: each[0]) - 1, 0)
    since_s, colour = thing.colours[current]
    before = thing.colours[current - 1][1] if current else colour
    blend = min(1.0, (time_s - since_s) / COLOUR_CHANGE_S) if current else 1.0
    x, y, radius = (track.at(time_s) for track in (thing.x, thing.y, thing.radius))
    return Look(thing.shape, before, colour, blend, x, y, radius)
