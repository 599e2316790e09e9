"""Read files and live streams as turns of frames.

`open_video` opens a file, and `open_source` opens a file or a live source. Both return readers that yield `VideoTurn`
objects. No decoder is imported before a source is opened, and torch not before the first of these names is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_MODULES = {
    "LiveReader": "live",
    "PushedFrames": "live",
    "SkipCounts": "source",
    "VideoInfo": "source",
    "VideoReader": "reader",
    "VideoTurn": "video_turn",
    "open_source": "live",
    "open_video": "reader",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"streamingvlm.video.{_MODULES[name]}"), name)
