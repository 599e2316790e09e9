"""Pitch: an endless synthetic football match for training and testing streaming commentary."""

from streamingvlm.pitch.commentary_lines import ParsedLine, parse_line, reference_line
from streamingvlm.pitch.keyframes import Keyframe
from streamingvlm.pitch.renderer import render, write_mp4
from streamingvlm.pitch.scorer import PitchReport, score, score_parts
from streamingvlm.pitch.script import EventKind
from streamingvlm.pitch.world import CLUBS, COLOURS, KINDS, Match, PitchSecond

__all__ = [
    "CLUBS",
    "COLOURS",
    "KINDS",
    "EventKind",
    "Keyframe",
    "Match",
    "ParsedLine",
    "PitchReport",
    "PitchSecond",
    "parse_line",
    "reference_line",
    "render",
    "score",
    "score_parts",
    "write_mp4",
]
