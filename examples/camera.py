"""Watch a camera: ``python examples/camera.py webcam``; without a name, frames pushed from Python stand in for one.

A source may also be an address: rtsp, rtmp, http or https.
"""

import sys
import threading
import time
from itertools import islice

from streamingvlm import PushedFrames, StreamingSession
from streamingvlm.pitch import Match, render

NUM_SECONDS = 4


def push(camera: PushedFrames):
    """Push two frames a second, as a camera's callback would, then end the source."""
    for second in islice(Match(0).seconds(), NUM_SECONDS):
        for frame in render(second):
            camera.push(frame)  # uint8 RGB: a tensor [3, H, W] or an array [H, W, 3]
            time.sleep(0.5)
    camera.close()


def main(source: str | None = None):
    """Print each line with the age of the frame that it speaks of."""
    camera = source or PushedFrames()
    if not source:
        threading.Thread(target=push, args=[camera], daemon=True).start()
    with StreamingSession.from_pretrained("pitch") as session:
        for line in session.stream(camera, live={"policy": "coalesce"}):
            print(line, f"({line.age_s:.1f} s ago)")


if __name__ == "__main__":
    main(*sys.argv[1:])
