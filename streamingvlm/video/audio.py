"""The sound of a video, for speech recognition: mono, 16 kHz, on the clock of the pictures."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from streamingvlm.errors import VideoError
from streamingvlm.video.clock import MAX_GAP_S
from streamingvlm.video.pyav import av

SAMPLE_RATE = 16000
CUT_SEARCH_S = 30.0
QUIET_S = 0.3
"""A piece ends in the quietest so many seconds of its last `CUT_SEARCH_S`: a cut inside a word costs that word."""
BLOCK_S = 30.0
MAX_DRIFT_S = 0.1
"""Resampling holds some samples back, and stamps are rounded: less than this is no gap."""


def read_sound(path: str | Path, *, piece_s: float = 600.0) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the sound in pieces of at most ``piece_s`` seconds: when each begins, and float32 samples from -1 to 1.

    Time 0 is the first picture, as `open_video` counts. Raises VideoError where there is no sound to be decoded.
    """
    held, start = np.zeros(0, np.float32), 0
    for samples in _samples(Path(path)):
        held = np.concatenate([held, samples])
        while len(held) >= piece_s * SAMPLE_RATE:
            cut = _quietest(held[: round(piece_s * SAMPLE_RATE)])
            yield start / SAMPLE_RATE, held[:cut]
            held, start = held[cut:], start + cut
    if len(held):
        yield start / SAMPLE_RATE, held


def _quietest(samples: np.ndarray) -> int:
    """Where to cut: the middle of the quietest window near the end."""
    window = round(QUIET_S * SAMPLE_RATE)
    first = max(len(samples) // 2, len(samples) - round(CUT_SEARCH_S * SAMPLE_RATE))
    num_windows = (len(samples) - first) // window
    if num_windows < 1:
        return len(samples)
    energy = np.square(samples[first : first + num_windows * window]).reshape(num_windows, window).mean(1)
    return first + int(energy.argmin()) * window + window // 2


def _samples(path: Path) -> Iterator[np.ndarray]:
    """Blocks without gaps, from time 0 on."""
    zero_s = _first_picture_s(path)
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    block, position = [], 0
    with _open(path) as container:
        if not container.streams.audio:
            raise VideoError(f"{str(path)!r} has no sound, so nothing can be recognised in it; give a transcript")
        for frame in chain(_frames(container), [None]):  # None gets out what the resampler holds back
            for part in resampler.resample(frame):
                time_s = None if frame is None or frame.pts is None else float(frame.pts * frame.time_base) - zero_s
                block.append(_in_place(part.to_ndarray()[0], time_s, position))
                position += len(block[-1])
            if sum(map(len, block)) >= BLOCK_S * SAMPLE_RATE:
                yield np.concatenate(block)
                block = []
    if not position:
        raise VideoError(f"{str(path)!r} has sound that cannot be decoded; convert it to AAC first")
    if block:
        yield np.concatenate(block)


def _in_place(samples: np.ndarray, time_s: float | None, position: int) -> np.ndarray:
    """Silence before samples that come after a gap; what lies before ``position`` cut off."""
    if time_s is None:
        return samples
    gap = round(time_s * SAMPLE_RATE) - position
    if not MAX_DRIFT_S * SAMPLE_RATE < abs(gap) <= MAX_GAP_S * SAMPLE_RATE:
        return samples
    return np.concatenate([np.zeros(gap, np.float32), samples]) if gap > 0 else samples[-gap:]


def _frames(container: "av.container.InputContainer") -> Iterator["av.AudioFrame"]:
    stream = container.streams.best("audio") or container.streams.audio[0]
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.FFmpegError:  # a damaged packet is a short silence
            continue


def _first_picture_s(path: Path) -> float:
    with _open(path) as container:
        if not container.streams.video:
            return 0.0
        frame = next(container.decode(video=0), None)
        return float(frame.pts * frame.time_base) if frame is not None and frame.pts is not None else 0.0


def _open(path: Path) -> "av.container.InputContainer":
    try:
        return av.open(f"file:{path}", metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{str(path)!r} cannot be opened ({error.strerror}); name a video file") from error
