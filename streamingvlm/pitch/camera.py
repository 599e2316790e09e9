"""A camera at the match: its clock is not that of the match, its frames are late by a little, scaled and compressed.

A model sees, for each moment of a stream, the newest frame at or before it. A phase of up to a quarter of a second
keeps the line of a second in its turn: an event lasts a second, so at two frames per second at least one frame of its
turn shows it. Phases beyond that are those of the turn before or after.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise

import torch
from PIL import Image

from streamingvlm.errors import ConfigError
from streamingvlm.pitch.dice import Dice, hashed
from streamingvlm.pitch.renderer import TICKS_PER_SECOND, render_at
from streamingvlm.pitch.world import PitchSecond

_RANGES = {
    "phase_ms": (-250, 250),
    "rate": (10, 1000),
    "jitter_ms": (0, 100),
    "jpeg_quality": (1, 95),
    "scale_percent": (25, 400),
}
_DRAWN_RATES = (10, 12, 15, 24, 25, 30, 50, 60)


@dataclass(frozen=True)
class Camera:
    """How the frames of a match are taken; the default gives those of `render`.

    phase_ms: a turn's frames show the match this much later (earlier if negative); rate: frames/s of the camera, None
        for a frame at every moment; jitter_ms: the time of each frame is off by at most this much.
    jpeg_quality: None for no compression; size: of the frames in pixels, as in `render`; scale_percent: of that size,
        before compression.
    seed: of the jitter.

    Raises ConfigError for values out of range.
    """

    phase_ms: int = 0
    rate: int | None = None
    jitter_ms: int = 0
    jpeg_quality: int | None = None
    size: int = 112
    scale_percent: int = 100
    seed: int = 0

    def __post_init__(self):
        for name, (lowest, highest) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value <= highest:
                raise ConfigError(f"{name}={value} of the camera is out of range; give {lowest} to {highest}")

    def turns(self, seconds: Iterable[PitchSecond], *, fps: float = 2.0) -> Iterator[tuple[PitchSecond, torch.Tensor]]:
        """Yield each second with the frames of its turn, uint8 [F, 3, H, W]; ``fps``: of the stream."""
        moments = [round(number * TICKS_PER_SECOND / fps) for number in range(round(fps))]
        for before, second, after in _with_neighbours(seconds):
            start = second.index * TICKS_PER_SECOND
            times = [self._shown_ms(start + moment) - start for moment in moments]
            yield second, torch.stack([self._taken(*_at(time, before, second, after)) for time in times])

    def _shown_ms(self, moment: int) -> int:
        """Return the time of the match in the newest frame at or before a moment of the stream."""
        if self.rate is None:
            return max(0, moment + self.phase_ms)
        number = (moment + self.jitter_ms) * self.rate // TICKS_PER_SECOND
        while number > 0 and self._time_ms(number) > moment:
            number -= 1
        return max(0, self._time_ms(number) + self.phase_ms)

    def _time_ms(self, number: int) -> int:
        jitter = hashed(self.seed, number) % (2 * self.jitter_ms + 1) - self.jitter_ms
        return number * TICKS_PER_SECOND // self.rate + jitter

    def _taken(self, second: PitchSecond, tick: int) -> torch.Tensor:
        frame = render_at(second, tick, size=self.size)
        if self.scale_percent == 100 and self.jpeg_quality is None:
            return frame
        side = self.size * self.scale_percent // 100
        image = Image.fromarray(frame.permute(1, 2, 0).numpy())
        return _compressed(image.resize((side, side), Image.Resampling.BILINEAR), self.jpeg_quality)


def draw_camera(seed: int) -> Camera:
    """Draw a camera of any phase, rate, jitter, quality and scale."""
    dice = Dice(seed)
    return Camera(
        phase_ms=dice.between(*_RANGES["phase_ms"]),
        rate=_DRAWN_RATES[dice.below(len(_DRAWN_RATES))],
        jitter_ms=dice.between(0, 40),
        jpeg_quality=dice.between(40, 95),
        size=224,
        scale_percent=dice.between(80, 120),
        seed=seed,
    )


def _compressed(image: Image.Image, quality: int | None) -> torch.Tensor:
    if quality is not None:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        image = Image.open(file)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1)


def _with_neighbours(seconds: Iterable[PitchSecond]) -> Iterator[tuple[PitchSecond, PitchSecond, PitchSecond]]:
    """Yield each second between the one before and the one after; the last has itself after it."""
    before = None
    for second, after in pairwise(_last_twice(seconds)):
        yield before or second, second, after
        before = second


def _last_twice(seconds: Iterable[PitchSecond]) -> Iterator[PitchSecond]:
    for second in seconds:
        yield second
    yield second


def _at(time: int, *around: PitchSecond) -> tuple[PitchSecond, int]:
    """Return the second that a time falls into, relative to the middle one of ``around``, and the time in it."""
    number, tick = divmod(time, TICKS_PER_SECOND)
    return around[min(max(number, -1), 1) + 1], tick
