"""Files and live streams become seconds of frames.

`open_video` opens a file, `open_source` anything that can be watched; iterating what they give gives `Second` objects.
No decoder is imported before a source is opened.
"""

from streamingvlm.video.clock import VideoTurn
from streamingvlm.video.live import LiveReader, PushedFrames, open_source
from streamingvlm.video.reader import VideoReader, open_video
from streamingvlm.video.source import SkipCounts, VideoInfo

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
