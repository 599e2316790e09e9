"""Sources that never end and do not wait: cameras, streams of the network, pipes, pushed frames.

connection  one connection to a source, through FFmpeg
feed        a source for as long as it is watched: connections one after the other, pushed frames, a file as if live
clock       stream time of what comes, and which pictures make up a second
backlog     the seconds that the model has not seen yet, and the lag policy
reader      all of it together: `open_source`, and the reader that it gives
pushed      frames pushed from Python

What reads files knows nothing of this; this reads files, too.
"""

from streamingvlm.video.live.pushed import PushedFrames
from streamingvlm.video.live.reader import LiveReader, open_source

__all__ = ["LiveReader", "PushedFrames", "open_source"]
