"""Rendered pictures of scenes."""

import numpy as np
import pytest

from mod_edge.toy_scenes.render import NOBODY, OUTLINES, Renderer, photographs_of
from mod_edge.toy_scenes.scene import SHAPES, Scene, Thing, Track
from mod_edge.toy_scenes.scene_generator import write_scene


def scene_of(shape, colour, x, y, radius, seed=3):
    tracks = map(Track.constant, (x, y, radius))
    return Scene(9.0, seed, [Thing(shape, [(0.0, colour)], *tracks)])


def test_a_picture_is_the_same_each_time():
    scene = write_scene(5, 20.0, held_out=False)
    first, second = (Renderer(scene, 64, ()).frame(3.5) for _ in range(2))
    assert first.shape == (64, 64, 3)
    np.testing.assert_array_equal(first, second)


def test_every_shape_has_an_outline_about_as_large_as_the_ball():
    def area(points):
        x, y = points.T
        return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2

    assert set(OUTLINES) == set(SHAPES)
    areas = {shape: area(points) / np.pi for shape, points in OUTLINES.items()}
    assert all(0.35 < share < 1.05 for share in areas.values()), areas


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_owns_the_pixels_at_its_place(shape):
    renderer = Renderer(scene_of(shape, "red", 0.25, 0.75, 0.1), 128, ())
    owners = renderer.owners(1.0, 64)
    rows, columns = np.nonzero(owners != NOBODY)
    assert abs(rows.mean() / 64 - 0.75) < 0.04
    assert abs(columns.mean() / 64 - 0.25) < 0.04
    assert set(np.unique(owners)) == {0, NOBODY}


def test_an_object_has_its_colour():
    renderer = Renderer(scene_of("box", "red", 0.5, 0.5, 0.14), 96, ())
    picture, owners = renderer.frame(1.0).astype(int), renderer.owners(1.0, 96)
    blue, green, red = picture[owners == 0].mean(axis=0)
    assert red > 2 * max(blue, green)


def test_a_lower_layer_is_hidden():
    scene = scene_of("box", "red", 0.5, 0.5, 0.14)
    hidden = Thing("ball", [(0.0, "blue")], *map(Track.constant, (0.5, 0.5, 0.08)), layer=-1)
    scene.things.append(hidden)
    owners = Renderer(scene, 96, ()).owners(1.0, 96)
    assert [look.shape for look in scene.looks(1.0)] == ["ball", "box"]
    assert set(np.unique(owners)) == {1, NOBODY}


def test_photographs_are_frames_of_a_video(clip):
    photographs = photographs_of(clip)
    assert len(photographs) == 8
    assert photographs[0].shape == (288, 384, 3)
