"""The video that a benchmark streams: pre-rendered frames in a loop, or a file that is decoded during the run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, cycle, islice

import torch

from streamingvlm.config import VideoConfig
from streamingvlm.errors import ConfigError
from streamingvlm.pitch import Match, render
from streamingvlm.video.reader import VideoReader, open_video
from streamingvlm.video.video_turn import VideoTurn

NOISE, MATCH = "noise", "match"

_NUM_NOISE_TURNS = 2
_NUM_MATCH_FRAMES = 96
_MIN_MATCH_TURNS = 4
_NUM_FILE_TURNS = 8
_MATCH_SEED = 1007


@contextmanager
def endless_turns(source: str, video: VideoConfig, *, height: int, width: int) -> Iterator[Iterator[VideoTurn]]:
    """Open footage without an end: noise and match repeat the same frames, a file is decoded again in each loop."""
    if source in (NOISE, MATCH):
        yield with_timestamps(cycle(load_turns(source, video, height=height, width=width)), video.turn_s)
        return
    frames = _loop_file(source, video)
    try:
        yield with_timestamps(frames, video.turn_s)
    finally:
        frames.close()


def load_turns(source: str, video: VideoConfig, *, height: int, width: int) -> list[torch.Tensor]:
    """Return the frames of a few turns, each uint8 [F, 3, H, W], to be repeated.

    source: ``noise`` of ``height`` x ``width`` pixels; ``match``, a match of Pitch in the renderer's own size; else a
    video file. Raises VideoError for a file that cannot be decoded, ConfigError for a match with ``turn_s`` other
    than 1.
    """
    if source == NOISE:
        generator = torch.Generator().manual_seed(0)
        shape = (video.num_frames, 3, height, width)
        return [torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for _ in range(_NUM_NOISE_TURNS)]
    if source == MATCH:
        if video.turn_s != 1:
            raise ConfigError(f"video.turn_s={video.turn_s:g}, but a match has turns of 1 s; use source=noise")
        num_turns = max(_MIN_MATCH_TURNS, _NUM_MATCH_FRAMES // video.num_frames)
        return [render(second, fps=video.fps) for second in islice(Match(_MATCH_SEED).seconds(), num_turns)]
    with _open_file(source, video) as reader:
        return [turn.frames for turn in islice(reader, _NUM_FILE_TURNS)]


def with_timestamps(frames: Iterator[torch.Tensor] | Sequence[torch.Tensor], turn_s: float) -> Iterator[VideoTurn]:
    """Number the turns of one stream and give them their times, from 0 s on."""
    for index, turn_frames in zip(count(), frames, strict=False):
        yield VideoTurn(index, index * turn_s, (index + 1) * turn_s, turn_frames)


def loop_from(frames: Sequence[torch.Tensor], first: int) -> Iterator[torch.Tensor]:
    """Repeat the turns, starting with turn ``first``: streams with the same footage then differ in their replies."""
    first %= len(frames)
    return cycle([*frames[first:], *frames[:first]])


def _loop_file(path: str, video: VideoConfig) -> Iterator[torch.Tensor]:
    while True:
        with _open_file(path, video) as reader:
            for turn in reader:
                yield turn.frames


def _open_file(path: str, video: VideoConfig) -> VideoReader:
    return open_video(path, fps=video.fps, turn_s=video.turn_s, decoder=video.decoder, prefetch=video.prefetch)
