"""Read files and live streams as turns of frames.

`open_video` opens a file, and `open_source` opens a file or a live source. Both return readers that yield `VideoTurn`
objects. No decoder is imported before a source is opened.
"""

from streamingvlm.video.live import LiveReader, PushedFrames, open_source
from streamingvlm.video.reader import VideoReader, open_video
from streamingvlm.video.source import SkipCounts, VideoInfo
from streamingvlm.video.video_turn import VideoTurn

__all__ = [
    "LiveReader",
    "PushedFrames",
    "SkipCounts",
    "VideoInfo",
    "VideoReader",
    "VideoTurn",
    "open_source",
    "open_video",
]
