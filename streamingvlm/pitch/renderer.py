"""Rendering of a match: frames for a model, an mp4 for people. Integer arithmetic gives the same pixels everywhere."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from streamingvlm.errors import ConfigError
from streamingvlm.pitch.field import (
    CENTRE,
    END,
    FIELD_PIXELS,
    FIELD_UNITS,
    GOAL_BOTTOM,
    GOAL_TOP,
    MARGIN,
    Point,
    between,
    distance,
    px,
    side_of,
)
from streamingvlm.pitch.keyframes import Keyframe
from streamingvlm.pitch.script import EventKind
from streamingvlm.pitch.sprites import NUM_TRAIL_DOTS, RGB, TRAIL_STEP, WHITE, sprite
from streamingvlm.pitch.world import Match, PitchSecond

GRASS: tuple[RGB, RGB] = ((52, 132, 66), (58, 141, 72))
_STRIP: RGB = (139, 190, 130)
_LINE: RGB = (120, 182, 128)
_NET: RGB = (206, 212, 214)
_NET_POST: RGB = (236, 240, 240)
_LIT_NET: RGB = (255, 240, 0)
_BORDER_PIXELS = 24  # of the 112 x 112 image: sprites may extend beyond the edge of the canvas by this much
_PHASES_PER_PIXEL = 4  # positions are rounded to a quarter of a pixel, which limits the number of cached sprites
TICKS_PER_SECOND = 1000  # resolution of a fractional frame rate


def render(second: PitchSecond, *, size: int = 112, fps: float = 2.0) -> torch.Tensor:
    """Return the frames of one second: uint8 [F, 3, size, size] RGB, F = round(fps), frame k at k / fps.

    Raises ConfigError unless `size` divides 1792 (56, 112, 224, 448, 896).
    """
    frames = np.stack(list(_frames(second, size, fps)))
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def render_at(second: PitchSecond, tick: int, *, size: int = 112) -> torch.Tensor:
    """Return the frame at a millisecond of a second: uint8 [3, size, size] RGB."""
    return torch.from_numpy(_draw(second, _interpolate(second.keyframes, tick), size)).permute(2, 0, 1)


def write_mp4(path: str | Path, seed: int, duration_s: int, *, size: int = 448, fps: int = 24) -> None:
    """Write the first seconds of a match as a video for people; at times k / 2 it shows the frames of `render`."""
    from streamingvlm.video.encoder import write_video  # Needs PyAV, which a benchmark machine may not have.

    seconds = islice(Match(seed).seconds(), duration_s)
    write_video(path, (frame for second in seconds for frame in _frames(second, size, fps)), fps=fps)


def _frames(second: PitchSecond, size: int, fps: float) -> Iterator[np.ndarray]:
    if size <= 0 or FIELD_UNITS % size:
        raise ConfigError(f"size {size} does not divide {FIELD_UNITS}; choose 112, 224 or 448")
    if fps < 1:
        raise ConfigError(f"fps {fps} gives less than one frame per second; choose at least 1")
    for index in range(round(fps)):
        yield _draw(second, _interpolate(second.keyframes, round(index * TICKS_PER_SECOND / fps)), size)


def _interpolate(keyframes: tuple[Keyframe, Keyframe, Keyframe], tick: int) -> Keyframe:
    """Return the positions at a millisecond of the second, linearly interpolated between the keyframes."""
    half, part = divmod(2 * tick, TICKS_PER_SECOND)
    start = keyframes[half]
    if part == 0:
        return start
    stop = keyframes[half + 1]

    def moved(a: Point, b: Point) -> Point:
        return between(a, b, part, TICKS_PER_SECOND)

    return Keyframe(
        tuple(map(moved, start.players, stop.players)),
        tuple(map(moved, start.keepers, stop.keepers)),
        moved(start.ball, stop.ball),
    )


def _draw(second: PitchSecond, frame: Keyframe, size: int) -> np.ndarray:
    """Draw one frame, uint8 [size, size, 3], from back to front."""
    canvas = _background_of(second, size).copy()
    for name, position in _shapes(second, frame):
        _blit_(canvas, name, position, size)
    border = _border(size)
    return canvas[border : border + size, border : border + size].astype(np.uint8)


def _shapes(second: PitchSecond, frame: Keyframe) -> Iterator[tuple[str, Point]]:
    """Yield the names of the sprites and their positions, from back to front."""
    if second.kind is EventKind.TACKLE:
        yield "clash", second.keyframes[0].ball
    if second.kind is EventKind.SHOT:
        yield from _trail(second.keyframes, frame.ball)
    for player, position in enumerate(frame.players):
        yield second.colours[side_of(player)], position
    for position in frame.keepers:
        yield "keeper", position
    if second.kind is EventKind.SAVE:
        yield "ring", second.keyframes[0].ball
    yield "ball", frame.ball


def _trail(keyframes: tuple[Keyframe, Keyframe, Keyframe], ball: Point) -> Iterator[tuple[str, Point]]:
    struck, later = keyframes[0].ball, keyframes[1].ball
    length = distance(struck, later)
    for index in reversed(range(NUM_TRAIL_DOTS)):
        x, y = between(struck, later, -(index + 1) * TRAIL_STEP, length)
        yield f"trail{index}", Point(ball.x + x - struck.x, ball.y + y - struck.y)


def _blit_(canvas: np.ndarray, name: str, position: Point, size: int) -> None:
    cell = FIELD_UNITS // size
    step = max(1, cell // _PHASES_PER_PIXEL)
    column, phase_x = divmod((position.x + step // 2) // step * step, cell)
    row, phase_y = divmod((position.y + step // 2) // step * step, cell)
    colour, transmittance, top, left = sprite(name, size, phase_x, phase_y)
    height, width, _ = colour.shape
    top += row + _border(size)
    left += column + _border(size)
    window = canvas[top : top + height, left : left + width]
    window[...] = (window * transmittance + colour + 127) // 255


def _border(size: int) -> int:
    return _BORDER_PIXELS * size // FIELD_PIXELS + 1


def _background_of(second: PitchSecond, size: int) -> np.ndarray:
    if second.kind is EventKind.GOAL:
        return _background(size, int(second.keyframes[0].ball.x > CENTRE.x), False)
    return _background(size, None, second.kind is EventKind.KICK_OFF)


@lru_cache(maxsize=16)
def _background(size: int, lit_end: int | None, kick_off: bool) -> np.ndarray:
    """Draw the empty field with its border, uint16 [h, w, 3]; a goal lights one net, a kick-off the centre circle."""
    fine = np.empty((FIELD_UNITS, FIELD_UNITS, 3), dtype=np.uint8)
    _paint_grass_(fine)
    _paint_lines_(fine, kick_off)
    for end in (0, 1):
        _paint_net_(fine, end, end == lit_end)
    cell = FIELD_UNITS // size
    pixels = fine.reshape(size, cell, size, cell, 3).sum(axis=(1, 3), dtype=np.int64) // cell**2
    border = _border(size)
    return np.pad(pixels.astype(np.uint16), ((border, border), (border, border), (0, 0)))


def _paint_grass_(fine: np.ndarray) -> None:
    fine[...] = _STRIP
    stripe = px(12)
    for index, left in enumerate(range(END, FIELD_UNITS - END, stripe)):
        fine[MARGIN:-MARGIN, left : left + stripe] = GRASS[index % 2]


def _paint_lines_(fine: np.ndarray, kick_off: bool) -> None:
    half = px(1) // 2
    inside = fine[MARGIN - half : FIELD_UNITS - MARGIN + half, END - half : FIELD_UNITS - END + half]
    for edge in (inside[: 2 * half], inside[-2 * half :], inside[:, : 2 * half], inside[:, -2 * half :]):
        edge[...] = _LINE
    fine[MARGIN:-MARGIN, CENTRE.x - half : CENTRE.x + half] = _LINE
    y, x = np.ogrid[-CENTRE.y : CENTRE.y, -CENTRE.x : CENTRE.x]
    squared = x * x + y * y
    fine[squared <= px(2) ** 2] = _LINE
    width = px(2) if kick_off else half
    fine[(squared <= (px(17) + width) ** 2) & (squared >= (px(17) - width) ** 2)] = WHITE if kick_off else _LINE


def _paint_net_(fine: np.ndarray, end: int, lit: bool) -> None:
    """Draw a net as a box with posts and meshes, or in plain bright yellow if lit."""
    box = fine[GOAL_TOP:GOAL_BOTTOM, FIELD_UNITS - END :] if end else fine[GOAL_TOP:GOAL_BOTTOM, :END]
    box[...] = _LIT_NET if lit else _NET
    if not lit:
        box[:: px(2)], box[:, :: px(2)] = _NET_POST, _NET_POST
