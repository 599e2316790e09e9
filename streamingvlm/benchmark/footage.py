"""What a benchmark shows: frames that cost nothing to come by, over and over, or a file that is decoded as it goes."""

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
_FEWEST_MATCH_TURNS = 4
_NUM_FILE_TURNS = 8
_MATCH_SEED = 1007


@contextmanager
def endless_seconds(source: str, video: VideoConfig, *, height: int, width: int) -> Iterator[Iterator[VideoTurn]]:
    """Open footage without end: what is drawn, over and over; a file, decoded anew each time that it ends."""
    if source in (NOISE, MATCH):
        yield numbered(cycle(turns_of(source, video, height=height, width=width)), video.turn_s)
        return
    frames = _played_over_and_over(source, video)
    try:
        yield numbered(frames, video.turn_s)
    finally:
        frames.close()


def turns_of(source: str, video: VideoConfig, *, height: int, width: int) -> list[torch.Tensor]:
    """A few turns of frames, each uint8 [F, 3, H, W], to be shown again and again.

    source: ``noise`` of ``height`` x ``width`` pixels; ``match``, of Pitch, in the size that its renderer has; else a
    video file. Raises VideoError for a file that cannot be watched, ConfigError for a match in other than seconds.
    """
    if source == NOISE:
        generator = torch.Generator().manual_seed(0)
        shape = (video.num_frames, 3, height, width)
        return [torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for _ in range(_NUM_NOISE_TURNS)]
    if source == MATCH:
        if video.turn_s != 1:
            raise ConfigError(f"video.turn_s={video.turn_s:g}, but the match is drawn in seconds; take source=noise")
        num_turns = max(_FEWEST_MATCH_TURNS, _NUM_MATCH_FRAMES // video.num_frames)
        return [render(second, fps=video.fps) for second in islice(Match(_MATCH_SEED).seconds(), num_turns)]
    with _opened(source, video) as reader:
        return [second.frames for second in islice(reader, _NUM_FILE_TURNS)]


def numbered(turns: Iterator[torch.Tensor] | Sequence[torch.Tensor], turn_s: float) -> Iterator[VideoTurn]:
    """Put turns of frames on the clock of one stream."""
    for index, frames in zip(count(), turns, strict=False):
        yield VideoTurn(index, index * turn_s, (index + 1) * turn_s, frames)


def _played_over_and_over(path: str, video: VideoConfig) -> Iterator[torch.Tensor]:
    while True:
        with _opened(path, video) as reader:
            for second in reader:
                yield second.frames


def _opened(path: str, video: VideoConfig) -> VideoReader:
    return open_video(path, fps=video.fps, turn_s=video.turn_s, decoder=video.decoder, prefetch=video.prefetch)
