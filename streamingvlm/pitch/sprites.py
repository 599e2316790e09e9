"""Antialiased sprites for the renderer, in integer arithmetic.

A shape is drawn once on a fine raster with cells of one field unit (1/16 pixel of the 112 x 112 image), then averaged
down to the pixels of the requested size for each sub-pixel offset. Every size therefore shows the same image. Colours
are premultiplied: an array [h, w, 4] of red, green, blue (each times alpha, up to 255 * 255) and alpha (up to 255).
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from streamingvlm.pitch.field import BALL_RADIUS, DISC_RADIUS, FIELD_UNITS, px

RGB = tuple[int, int, int]

SIDE_RGB: dict[str, RGB] = {
    "red": (226, 38, 44),
    "blue": (38, 84, 232),
    "yellow": (250, 218, 40),
    "black": (22, 22, 26),
}
_RIM_RGB: dict[str, RGB] = {
    "red": (120, 10, 16),
    "blue": (12, 30, 120),
    "yellow": (140, 110, 0),
    "black": (96, 96, 104),
}
KEEPER_RGB: RGB = (150, 152, 156)
_KEEPER_RIM: RGB = (78, 80, 84)
_INK: RGB = (24, 30, 26)
WHITE: RGB = (255, 255, 255)
ORANGE: RGB = (255, 140, 0)
NUM_TRAIL_DOTS = 20
TRAIL_STEP = px(1)


class Sprite(NamedTuple):
    """A small image: `colour` [h, w, 3] times alpha, `transmittance` [h, w, 1] = 255 - alpha, its upper left pixel."""

    colour: np.ndarray
    transmittance: np.ndarray
    top: int
    left: int


class _Canvas:
    """A square of fine cells around an origin, painted from back to front."""

    def __init__(self, reach: int) -> None:
        self.reach = reach
        self.rgba = np.zeros((2 * reach, 2 * reach, 4), dtype=np.int64)
        # Twice the distance of each cell's centre from the origin, which is an integer.
        self.y, self.x = np.meshgrid(*[np.arange(-2 * reach + 1, 2 * reach, 2)] * 2, indexing="ij")

    def paint(self, mask: np.ndarray, rgb: RGB, alpha: int = 255) -> None:
        under = self.rgba[mask] * (255 - alpha) // 255
        self.rgba[mask] = under + np.array([*(value * alpha for value in rgb), alpha])

    def disc(self, radius: int, dx: int = 0, dy: int = 0) -> np.ndarray:
        return (self.x - 2 * dx) ** 2 + (self.y - 2 * dy) ** 2 <= 4 * radius**2


def _player(rgb: RGB, rim: RGB) -> np.ndarray:
    canvas = _Canvas(DISC_RADIUS + px(2))
    canvas.paint(canvas.disc(DISC_RADIUS, 16, 20), (0, 0, 0), 70)
    canvas.paint(canvas.disc(DISC_RADIUS), rim)
    canvas.paint(canvas.disc(DISC_RADIUS - 13), rgb)
    return canvas.rgba


def _ball() -> np.ndarray:
    canvas = _Canvas(BALL_RADIUS + px(2))
    canvas.paint(canvas.disc(BALL_RADIUS, 12, 16), (0, 0, 0), 80)
    canvas.paint(canvas.disc(BALL_RADIUS), _INK)
    canvas.paint(canvas.disc(BALL_RADIUS - 12), WHITE)
    return canvas.rgba


def _clash() -> np.ndarray:
    """Draw a burst of twelve spikes: the union of a circle and six thin rhombi."""
    canvas = _Canvas(px(20))
    burst = canvas.disc(px(12))
    for along, across in ((0, 16), (8, 14), (14, 8), (16, 0), (14, -8), (8, -14)):
        length = abs(canvas.x * along + canvas.y * across)
        width = abs(canvas.x * across - canvas.y * along)
        burst |= length + 3 * width <= 2 * px(19) * 16
    canvas.paint(burst, WHITE, 235)
    return canvas.rgba


def _ring() -> np.ndarray:
    canvas = _Canvas(px(14))
    canvas.paint(canvas.disc(px(13)) & ~canvas.disc(px(9)), ORANGE)
    return canvas.rgba


def _trail_dot(index: int) -> np.ndarray:
    canvas = _Canvas(BALL_RADIUS)
    canvas.paint(canvas.disc(BALL_RADIUS - px(1) - 3 * index // 2), WHITE, 120 - 3 * index)
    return canvas.rgba


@lru_cache(maxsize=64)
def _fine(name: str) -> np.ndarray:
    """Draw the fine raster [2r, 2r, 4] of a shape: a colour's name, "keeper", "ball", "clash", "ring", "trail0"..."""
    if name in SIDE_RGB:
        return _player(SIDE_RGB[name], _RIM_RGB[name])
    if name == "keeper":
        return _player(KEEPER_RGB, _KEEPER_RIM)
    if name.startswith("trail"):
        return _trail_dot(int(name.removeprefix("trail")))
    return {"ball": _ball, "clash": _clash, "ring": _ring}[name]()


@lru_cache(maxsize=4096)
def sprite(name: str, size: int, phase_x: int, phase_y: int) -> Sprite:
    """Return a shape's sprite for an image of `size`, with its centre `phase` units off a pixel's upper left corner.

    `top` and `left` are relative to that pixel.
    """
    fine = _fine(name)
    cell = FIELD_UNITS // size
    reach = fine.shape[0] // 2
    before = [-(-(reach - phase) // cell) for phase in (phase_y, phase_x)]
    after = [-(-(reach + phase) // cell) for phase in (phase_y, phase_x)]
    padding = [
        (lead * cell - reach + phase, tail * cell - reach - phase)
        for lead, tail, phase in zip(before, after, (phase_y, phase_x), strict=True)
    ]
    padded = np.pad(fine, (*padding, (0, 0)))
    height, width = padded.shape[0] // cell, padded.shape[1] // cell
    sums = padded.reshape(height, cell, width, cell, 4).sum(axis=(1, 3))
    # Colour is rounded down and opacity up, so that white on white cannot exceed 255.
    colour, opacity = sums[..., :3] // cell**2, -(-sums[..., 3:] // cell**2)
    return Sprite(
        np.ascontiguousarray(colour, dtype=np.uint16),
        np.ascontiguousarray(255 - opacity, dtype=np.uint16),
        -before[0],
        -before[1],
    )
