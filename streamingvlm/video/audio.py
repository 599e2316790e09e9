"""Read the audio of a video for speech recognition: mono, 16 kHz, with time 0 at the first frame."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from streamingvlm.errors import VideoError
from streamingvlm.video.pyav import FILE_OPTIONS, av
from streamingvlm.video.stream_clock import MAX_GAP_S

SAMPLE_RATE = 16000
CUT_SEARCH_S = 30.0
QUIET_S = 0.3
"""A piece ends in the quietest window of this length within its last `CUT_SEARCH_S`, so that no word is cut in two."""
BLOCK_S = 30.0
MAX_DRIFT_S = 0.1
"""The resampler delays some samples and timestamps are rounded, so a shorter difference is not a gap."""


def read_audio(path: str | Path, *, piece_s: float = 600.0) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the audio in pieces of at most `piece_s` seconds: the start time, and float32 samples from -1 to 1.

    Time 0 is the first frame, as in `open_video`. Raises VideoError if there is no audio that can be decoded.
    """
    pending, start = np.zeros(0, np.float32), 0
    for samples in _samples(Path(path)):
        pending = np.concatenate([pending, samples])
        while len(pending) >= piece_s * SAMPLE_RATE:
            cut = _quietest(pending[: round(piece_s * SAMPLE_RATE)])
            yield start / SAMPLE_RATE, pending[:cut]
            pending, start = pending[cut:], start + cut
    if len(pending):
        yield start / SAMPLE_RATE, pending


def _quietest(samples: np.ndarray) -> int:
    """Return the position to cut at: the middle of the quietest window near the end."""
    window = round(QUIET_S * SAMPLE_RATE)
    first = max(len(samples) // 2, len(samples) - round(CUT_SEARCH_S * SAMPLE_RATE))
    num_windows = (len(samples) - first) // window
    if num_windows < 1:
        return len(samples)
    energy = np.square(samples[first : first + num_windows * window]).reshape(num_windows, window).mean(1)
    return first + int(energy.argmin()) * window + window // 2


def _samples(path: Path) -> Iterator[np.ndarray]:
    """Yield blocks without gaps, from time 0 on."""
    zero_s = _first_frame_s(path)
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    block, position = [], 0
    with _open(path) as container:
        if not container.streams.audio:
            raise VideoError(f"{str(path)!r} has no audio, so speech recognition is impossible; give a transcript")
        for frame in chain(_frames(container), [None]):  # None flushes the resampler
            for part in resampler.resample(frame):
                time_s = None if frame is None or frame.pts is None else float(frame.pts * frame.time_base) - zero_s
                block.append(_align(part.to_ndarray()[0], time_s, position))
                position += len(block[-1])
            if sum(map(len, block)) >= BLOCK_S * SAMPLE_RATE:
                yield np.concatenate(block)
                block = []
    if not position:
        raise VideoError(f"{str(path)!r} has audio that cannot be decoded; convert it to AAC first")
    if block:
        yield np.concatenate(block)


def _align(samples: np.ndarray, time_s: float | None, position: int) -> np.ndarray:
    """Insert silence before samples that follow a gap; cut off what lies before `position`."""
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
        except av.FFmpegError:  # a damaged packet becomes a short silence
            continue


def _first_frame_s(path: Path) -> float:
    with _open(path) as container:
        frame = next(container.decode(video=0), None) if container.streams.video else None
        return float(frame.pts * frame.time_base) if frame is not None and frame.pts is not None else 0.0


def _open(path: Path) -> "av.container.InputContainer":
    try:
        return av.open(f"file:{path}", metadata_errors="replace", options=FILE_OPTIONS)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{str(path)!r} cannot be opened ({error.strerror}); name a video file") from error
