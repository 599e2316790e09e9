"""Sources that are endless and do not wait: cameras, network streams, pipes, pushed frames.

connection     one connection to a source, through FFmpeg
feed           a source for as long as it is watched: successive connections, pushed frames, a file in real time
live_clock     the stream time of live frames
live_sampler   the frames of each turn, chosen as they arrive
backlog        the turns that wait for the model, and the lag policies
live_reader    `open_source` and the reader that it returns
pushed_frames  frames pushed from Python

The modules that read files do not import this package; this package imports them.
"""

from streamingvlm.video.live.live_reader import LiveReader, open_source
from streamingvlm.video.live.pushed_frames import PushedFrames

__all__ = ["LiveReader", "PushedFrames", "open_source"]
