"""Display matrices, rotated and mirrored, against the formula that defines them."""

import itertools

import numpy as np
import pytest

from streamingvlm.video.orientation import Orientation

ONE = 1 << 16
ROTATIONS = [(a, 0, 0, d) for a, d in itertools.product((1, -1), repeat=2)] + [
    (0, b, c, 0) for b, c in itertools.product((1, -1), repeat=2)
]


def matrix(a, b, c, d):
    return np.array([a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30], np.int32).tobytes()


@pytest.mark.parametrize("rotation", ROTATIONS, ids=str)
def test_every_point_goes_where_the_matrix_maps_it(rotation):
    a, b, c, d = rotation
    height, width = 3, 5
    image = np.arange(height * width).reshape(height, width, 1)
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    x, y = a * columns + c * rows, b * columns + d * rows
    x, y = x - x.min(), y - y.min()
    expected = np.empty((y.max() + 1, x.max() + 1, 1), int)
    expected[y, x] = image
    assert np.array_equal(Orientation.from_display_matrix(matrix(*rotation)).apply(image), expected)


@pytest.mark.parametrize(
    ("rotation", "degrees"), [((1, 0, 0, 1), 0), ((0, 1, -1, 0), 90), ((-1, 0, 0, -1), 180), ((0, -1, 1, 0), 270)]
)
def test_the_angle_is_clockwise(rotation, degrees):
    assert Orientation.from_display_matrix(matrix(*rotation)).rotation == degrees


@pytest.mark.parametrize("nothing", [None, bytes(36)])
def test_no_matrix_or_an_empty_one_changes_nothing(nothing):
    assert Orientation.from_display_matrix(nothing) == Orientation()
