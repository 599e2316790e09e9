"""Files of video become seconds of frames.

`open_video` gives a `VideoReader`; iterating it gives `Second` objects. No decoder is imported before a file is opened.
"""

from streamingvlm.video.clock import Second
from streamingvlm.video.reader import VideoReader, open_video
from streamingvlm.video.source import SkipCounts, VideoInfo

__all__ = ["Second", "SkipCounts", "VideoInfo", "VideoReader", "open_video"]
