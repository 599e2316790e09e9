"""The football field: its dimensions, the nine zones between which players move, and plane geometry in integers.

All positions are integers in units of 1/16 pixel of a 112 x 112 image, x to the right and y down.
"""

from math import isqrt
from typing import NamedTuple

UNITS_PER_PIXEL = 16
FIELD_PIXELS = 112
FIELD_UNITS = FIELD_PIXELS * UNITS_PER_PIXEL


class Point(NamedTuple):
    """A position on the field, in units of 1/16 pixel."""

    x: int
    y: int


def px(pixels: int) -> int:
    """Convert pixels of the 112 x 112 image to units."""
    return pixels * UNITS_PER_PIXEL


DISC_RADIUS = px(7)
BALL_RADIUS = px(4)
MARGIN = px(10)  # the strips outside the touch-lines, above and below
END = px(8)  # the strips behind the goal lines, left and right
GOAL_TOP, GOAL_BOTTOM = px(38), px(74)
CENTRE = Point(FIELD_UNITS // 2, FIELD_UNITS // 2)

PLAYERS_PER_SIDE = 4
NUM_PLAYERS = 2 * PLAYERS_PER_SIDE

# Nine zones, row by row, for eight players: one zone is always free, and a player runs by moving into it.
NUM_COLUMNS = 3
ZONES = tuple(Point(px(x), px(y)) for y in (24, 56, 88) for x in (32, 56, 80))
CENTRE_ZONE = 4

# Bounds of the outfield players, clear of the keepers and the touch-lines.
LOW = Point(px(28), px(19))
HIGH = Point(px(84), px(93))


def side_of(player: int) -> int:
    """Return the side, 0 or 1, of a player 0 to 7."""
    return player // PLAYERS_PER_SIDE


def mirrored(x: int, end: int) -> int:
    """Return an x coordinate given for the left end (`end` 0), mirrored for the right end (1)."""
    return FIELD_UNITS - x if end else x


def distance(a: Point, b: Point) -> int:
    """Return the distance of two points, rounded down to whole units."""
    return isqrt((a.x - b.x) ** 2 + (a.y - b.y) ** 2)


def between(a: Point, b: Point, part: int, whole: int) -> Point:
    """Return the point at `part / whole` of the way from `a` to `b`."""
    return Point(a.x + (b.x - a.x) * part // whole, a.y + (b.y - a.y) * part // whole)


def midpoint(a: Point, b: Point) -> Point:
    """Return the point half way from `a` to `b`."""
    return between(a, b, 1, 2)


def towards(start: Point, goal: Point, length: int) -> Point:
    """Return the point `length` from `start` in the direction of `goal` (to the right if they coincide)."""
    gap = distance(start, goal)
    return between(start, goal, length, gap) if gap else Point(start.x + length, start.y)


def clamped(point: Point) -> Point:
    """Return the nearest point within the bounds of outfield players."""
    return Point(min(max(point.x, LOW.x), HIGH.x), min(max(point.y, LOW.y), HIGH.y))
