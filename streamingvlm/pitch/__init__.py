"""Pitch: an endless synthetic football match, to train and to test a commentator on."""

from streamingvlm.pitch.commentator import Call, parse, say
from streamingvlm.pitch.renderer import render, write_mp4
from streamingvlm.pitch.scorer import PitchReport, score, score_parts
from streamingvlm.pitch.script import EventKind
from streamingvlm.pitch.staging import Keyframe
from streamingvlm.pitch.world import CLUBS, COLOURS, KINDS, Match, PitchSecond

__all__ = [
    "CLUBS",
    "COLOURS",
    "KINDS",
    "Call",
    "EventKind",
    "Keyframe",
    "Match",
    "PitchReport",
    "PitchSecond",
    "parse",
    "render",
    "say",
    "score",
    "score_parts",
    "write_mp4",
]
