"""Real video files in which every frame shows its own number."""

import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from live_sources import FPS, write_camera_file
from numbered_pictures import noisy_picture, picture, read_number

TICK = Fraction(1, 90000)


def regular(rate: Fraction | int, num_frames: int, start_s: float = 0) -> list[Fraction]:
    """Times of the frames of a clip with a constant frame rate."""
    return [Fraction(start_s) + i / Fraction(rate) for i in range(num_frames)]


def _write_clip(
    path: Path,
    times_s: Sequence[Fraction],
    *,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: Fraction | int = 25,
    rotation: int | None = None,
    codec_options: dict[str, str] | None = None,
    muxer_options: dict[str, str] | None = None,
    draw: Callable[[int, int, int], np.ndarray] = picture,
) -> Path:
    """Write frame i at `times_s[i]`; the timestamps have ticks of 1/90000 s."""
    width, height = size
    with av.open(str(path), "w", options=muxer_options or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(rate), options=codec_options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = TICK if codec not in ("mpeg4", "mjpeg") else 1 / Fraction(rate)
        stream.codec_context.gop_size = 25
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(draw(number, width, height), format="rgb24")
            frame.pts, frame.time_base = round(time_s / stream.codec_context.time_base), stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _damage(path: Path, *, at: float, length: float) -> Path:
    """Overwrite a part of a file, given as fractions of it, with noise."""
    data = bytearray(path.read_bytes())
    begin, size = int(len(data) * at), int(len(data) * length)
    data[begin : begin + size] = np.random.default_rng(0).bytes(size)
    path.write_bytes(data)
    return path


def _cut(path: Path, *, keep: float) -> Path:
    """Truncate a file to a fraction of its size."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Let threads switch after every few bytecodes, so that unlocked reads of shared state fail within a second."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval_s)


@pytest.fixture
def write_clip() -> Callable[..., Path]:
    return _write_clip


@pytest.fixture
def write_noisy_clip(write_clip) -> Callable[..., Path]:
    return partial(write_clip, size=(160, 120), draw=noisy_picture)


@pytest.fixture
def damage() -> Callable[..., Path]:
    return _damage


@pytest.fixture
def cut() -> Callable[..., Path]:
    return _cut


@pytest.fixture
def regular_times() -> Callable[..., list[Fraction]]:
    return regular


@pytest.fixture
def numbers() -> Callable[..., list[list[int]]]:
    """Read the numbers of the frames of each turn."""
    return lambda turns: [[read_number(frame) for frame in turn.frames] for turn in turns]


@pytest.fixture
def write_audio() -> Callable[[Path], Path]:
    """Write a second of silence, without video."""

    def write(path: Path) -> Path:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def camera_clip(tmp_path_factory) -> Path:
    """Half a minute as a camera encodes it, 25 frames a second, each with its number."""
    path = tmp_path_factory.mktemp("camera") / "clip.mp4"
    return write_camera_file(path, (picture(number, 64, 48) for number in range(30 * FPS)), FPS)


def expected_numbers(times_s: Sequence[Fraction], sample_s: Sequence[Fraction]) -> list[int]:
    """For each sampling time the newest frame before it, by a search of all."""
    origin, slack = times_s[0], TICK / 2
    return [
        max([i for i, time_s in enumerate(times_s) if time_s - origin <= time + slack], default=0) for time in sample_s
    ]


@pytest.fixture
def expected() -> Callable[..., list[int]]:
    return expected_numbers
