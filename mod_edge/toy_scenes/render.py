"""Renders scenes with OpenCV: background, objects, and camera effects (shake, noise, blur)."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.toy_scenes.scene import Look, Scene

Image = npt.NDArray[np.uint8]
Polygon = npt.NDArray[np.float64]

BGR = {
    "red": (40, 40, 225),
    "green": (60, 170, 40),
    "blue": (215, 90, 30),
    "yellow": (40, 215, 245),
    "pink": (190, 90, 240),
    "cyan": (220, 215, 60),
}
SUBPIXEL_BITS = 5
PHOTOGRAPH_FPS = 0.5
NOBODY = 255  # the owner of background pixels


class Renderer:
    """Pictures of one scene, (size, size, 3) uint8 BGR; the same for the same instant."""

    def __init__(self, scene: Scene, size: int, photographs: Sequence[Image]) -> None:
        """Choose the background and the camera effects.

        `size` is the picture's side in pixels; `photographs` (H, W, 3) uint8 BGR may be empty.
        """
        self._scene, self._size = scene, size
        rng = np.random.default_rng([scene.seed, 1])
        self._background = _background(rng, size, photographs)
        self._shake = rng.choice([0.0, 0.004, 0.012])  # shares of the side
        self._noise = rng.choice([0.0, 3.0, 7.0])  # levels of 255
        self._blur = rng.choice([0.0, 0.0, 0.006])
        self._light = rng.uniform(0.85, 1.1)
        self._tints = {
            colour: np.clip(np.array(bgr) + rng.normal(0, 8, 3), 0, 255)
            for colour, bgr in BGR.items()
        }

    def frame(self, time_s: float) -> Image:
        """The picture at `time_s`."""
        rng = self._generator(time_s)
        offset = self._shake * rng.normal(0, 1, 2)
        image = self._background.copy()
        for look in self._scene.looks(time_s):
            outline = outline_of(look, offset, self._size)
            cv2.fillPoly(image, [outline], self._tint(look), cv2.LINE_AA, SUBPIXEL_BITS)
        if self._blur:
            cv2.GaussianBlur(image, (0, 0), self._blur * self._size, dst=image)
        wide = image.astype(np.float32) * self._light
        if self._noise:
            wide += self._noise * rng.standard_normal(image.shape, np.float32)
        return np.clip(wide, 0, 255).astype(np.uint8)

    def owners(self, time_s: float, size: int) -> Image:
        """(size, size): for each pixel the index in `looks` of its object, or `NOBODY`."""
        offset = self._shake * self._generator(time_s).normal(0, 1, 2)
        owners = np.full((size, size), NOBODY, np.uint8)
        for index, look in enumerate(self._scene.looks(time_s)):
            cv2.fillPoly(owners, [outline_of(look, offset, size)], index, shift=SUBPIXEL_BITS)
        return owners

    def _generator(self, time_s: float) -> np.random.Generator:
        return np.random.default_rng([self._scene.seed, 2, round(1000 * time_s)])

    def _tint(self, look: Look) -> tuple[float, float, float]:
        before, after = self._tints[look.colour], self._tints[look.next_colour]
        blue, green, red = before + look.blend * (after - before)
        return float(blue), float(green), float(red)


def outline_of(look: Look, offset: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.int32]:
    """The object's outline (points, 2) in pixels, fixed point with `SUBPIXEL_BITS` bits."""
    centre = np.array([look.x, look.y]) + offset
    points = (centre + look.radius * OUTLINES[look.shape]) * size - 0.5
    rounded: npt.NDArray[np.int32] = np.round(points * 2**SUBPIXEL_BITS).astype(np.int32)
    return rounded


@lru_cache(maxsize=1)
def photographs_of(video: Path) -> tuple[Image, ...]:
    """One frame of a video every two seconds, (H, W, 3) uint8 BGR.

    Raises:
        SourceError: the video cannot be read.
    """
    with VideoFile(video, fps=PHOTOGRAPH_FPS) as frames:
        return tuple(frame.image for frame in frames)


def _background(rng: np.random.Generator, size: int, photographs: Sequence[Image]) -> Image:
    kind = rng.choice(["plain", "slope", "texture", "photograph"])
    if kind == "photograph" and photographs:
        photograph = photographs[int(rng.integers(len(photographs)))]
        side = int(rng.uniform(0.4, 1.0) * min(photograph.shape[:2]))
        top, left = (rng.integers(0, limit - side + 1) for limit in photograph.shape[:2])
        crop = photograph[top : top + side, left : left + side]
        return np.asarray(cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA), np.uint8)
    # Greyish and of medium brightness, so that every colour stands out.
    level = rng.uniform(50, 200) + rng.uniform(-14, 14, 3)
    field = np.broadcast_to(level, (size, size, 3)).astype(np.float32)
    if kind == "slope":
        angle = rng.uniform(0, 2 * math.pi)
        rows, columns = np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j]
        field = field + (60 * (math.cos(angle) * columns + math.sin(angle) * rows))[..., None]
    elif kind == "texture":
        coarse = rng.normal(0, 18, (int(rng.integers(3, 20)),) * 2).astype(np.float32)
        field = field + cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)[..., None]
    return np.clip(field, 0, 255).astype(np.uint8)


def _regular(radii: list[float], count: int, start_deg: float) -> Polygon:
    angles = np.radians(start_deg + 360 * np.arange(count) / count)
    lengths = np.resize(radii, count)
    return np.stack([lengths * np.cos(angles), lengths * np.sin(angles)], axis=1)


def _cross(arm: float) -> Polygon:
    corner = [(arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)]
    half = np.array(corner)
    return np.concatenate([half, -half])


OUTLINES: dict[str, Polygon] = {  # of radius 1 around (0, 0)
    "ball": _regular([1.0], 40, 0),
    "box": _regular([1.22], 4, 45),
    "triangle": _regular([1.15], 3, -90),
    "star": _regular([1.15, 0.5], 10, -90),
    "cross": _cross(0.34),
}
