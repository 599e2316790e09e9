"""Watches a camera more slowly than it shows: ``python slow_stream.py CHECKPOINT ADDRESS POLICY TURN_S``.

It writes a JSON line a turn: the number on the newest picture that was seen, and what the commentary tells of its age.
"""

import json
import sys
import time

from numbered_pictures import read_number

from streamingvlm import StreamingSession, load_model

VIDEO = {"fps": 2.0, "turn_s": 1.0, "min_pixels": 28 * 28, "max_pixels": 56 * 84}


def main(checkpoint: str, address: str, policy: str, turn_s: str):
    """Watch until killed."""
    model = load_model(checkpoint, device="cpu")
    session = StreamingSession(model, video=VIDEO, sampling={"temperature": 0.0, "max_new_tokens": 8})
    feed = session.engine.runner.feed_

    def feed_slowly(meals):
        time.sleep(float(turn_s))
        return feed(meals)

    session.engine.runner.feed_ = feed_slowly
    seen = []

    def step(second):
        seen[:] = [len(second.frames), read_number(second.frames[-1])]
        return session.step(second)

    for line in session.stream(address, live={"policy": policy}, step=step):
        facts = {name: getattr(line, name) for name in ("age_s", "dropped_s", "coalesced_s", "detail", "start_s")}
        print(json.dumps({"num_frames": seen[0], "newest": seen[1], **facts}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
