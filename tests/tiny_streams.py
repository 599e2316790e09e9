"""Settings under which a tiny model's stream evicts tokens within a few turns, and random frames for it."""

import torch
from tiny_inputs import frames

from streamingvlm.config import SamplingConfig, VideoConfig
from streamingvlm.video.video_turn import VideoTurn

VIDEO = VideoConfig(min_pixels=1, max_pixels=56 * 56)
GREEDY = SamplingConfig(temperature=0, repetition_penalty=1.0, max_new_tokens=5)
SAMPLED = SamplingConfig(temperature=1.0, repetition_penalty=1.2, max_new_tokens=6, seed=5)
TEXTS = {"query": "Who has the ball?", "previous_text": "The match is about to begin."}

SMALL = {"text_sink_tokens": 6, "text_window_tokens": 8, "vision_window_s": 2.0, "turn_window_s": 3.0}
CACHES = {
    "streaming": SMALL,
    "reread": {**SMALL, "recompute_text": True},
    "native": {**SMALL, "positions": "native"},
    "native reread": {**SMALL, "positions": "native", "recompute_text": True},
    "one second": {**SMALL, "vision_window_s": 1.0, "turn_window_s": 1.0},
    "full": {"policy": "full"},
    "recompute": {**SMALL, "recompute": True},
    "window": {"policy": "window", "vision_window_s": 3.0},
    "reference": {**SMALL, "policy": "reference"},
    "fp8": {**SMALL, "recompute_text": True, "dtype": "fp8"},
}


def small(turn: int) -> torch.Tensor:
    """Draw the frames of a turn, uint8 [2, 3, 28, 56]."""
    return frames(turn, height=28, width=56)


def second(turn: int) -> VideoTurn:
    """Draw a turn of video, one second long."""
    return VideoTurn(turn, turn, turn + 1.0, small(turn))
