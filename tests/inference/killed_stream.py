"""A process that streams until it is killed: ``python killed_stream.py CHECKPOINT CACHE_JSON SNAPSHOT LOG``.

It goes on from the snapshot if there is one, and writes a line a turn: the turn's number, a space, the tokens in sight.
"""

import json
import os
import sys

import torch

from streamingvlm.config import SamplingConfig, VideoConfig
from streamingvlm.inference.session import StreamingSession
from streamingvlm.inference.snapshot_folder import has_snapshot
from streamingvlm.model.loading import load_model
from streamingvlm.video.video_turn import VideoTurn

SETTINGS = {
    "video": VideoConfig(min_pixels=1, max_pixels=56 * 56),
    "sampling": SamplingConfig(temperature=1.0, repetition_penalty=1.2, max_new_tokens=6, seed=5),
    "query": "Who has the ball?",
    "previous_text": "The match is about to begin.",
}


def second(turn: int) -> VideoTurn:
    """Random frames, the same in every process."""
    dice = torch.Generator().manual_seed(turn)
    frames = torch.randint(0, 256, (2, 3, 28, 56), generator=dice, dtype=torch.uint8)
    return VideoTurn(turn, turn, turn + 1.0, frames)


def told(session: StreamingSession) -> str:
    """The line of the turn that was taken last."""
    return f"{session.num_turns - 1} {json.dumps(session.inspect().ids)}\n"


def main(checkpoint: str, cache: str, snapshot: str, log: str):
    """Stream."""
    model = load_model(checkpoint, device="cpu")
    if has_snapshot(snapshot):
        session = StreamingSession.load(snapshot, model=model, autosave=snapshot)
    else:
        session = StreamingSession(model, cache=json.loads(cache), autosave=snapshot, **SETTINGS)
    lines = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        session.step(second(session.num_turns))
        os.write(lines, told(session).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
